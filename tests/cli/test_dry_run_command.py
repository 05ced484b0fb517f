import json
import shutil
from pathlib import Path

import pytest
import transformers

from command import skipgpt
from runs import shared_checkpoint


def test_the_needs_of_a_large_model_are_told_without_weights() -> None:
    shape, parameters = "llama-3.1-405b", 405_853_388_800  # as published
    arguments = ("--layout", "fsdp2", "--processes", 8, "--recipe", "paper", "--device", "cuda")
    ended = skipgpt("train", shape, "--dry-run", *arguments, "--json")
    assert ended.status == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [stage["stage"] for stage in told["stages"]] == ["router", "lora"]
    assert told["loading"] == 2 * parameters
    for stage in told["stages"]:
        assert stage["held"]["parameters"] == parameters
        # An eighth of the weights in bfloat16, and of what trains in float32.
        assert stage["memory"]["weights"] * 8 > 2 * parameters


def test_a_folder_with_nothing_but_a_config_will_do(tmp_path: Path) -> None:
    transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    ).save_pretrained(tmp_path / "base")
    ended = skipgpt("train", tmp_path / "base", "--dry-run", "--stages", "router")
    assert ended.status == 0, ended.stderr
    assert "stage router" in ended.stdout
    assert "MB per device" in ended.stdout


def test_without_a_dry_run_data_and_a_folder_are_asked_for(tmp_path: Path) -> None:
    ended = skipgpt("train", "nano", "--out", tmp_path / "out")
    assert ended.status == 2
    assert "--data" in ended.stderr


def test_a_dry_run_of_nothing_says_so() -> None:
    ended = skipgpt("train", "no/such/model", "--dry-run")
    assert ended.status == 1
    assert "no/such/model" in ended.stderr


def test_a_base_with_a_name_like_a_shape_is_told_the_shape() -> None:
    ended = skipgpt("train", "no/such/Llama-3.1-70", "--dry-run")
    assert ended.status == 1
    assert "shapes of a like name: llama-3.1-70b" in ended.stderr


def test_a_dry_run_of_a_checkpoint_is_of_its_base_and_its_routers(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(shared_checkpoint(), checkpoint)
    path = checkpoint / "skipgpt_config.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info["router"]["head"] = "mlp"
    path.write_text(json.dumps(info), encoding="utf-8")
    asked = ("--dry-run", "--stages", "router", "--json", "--set", "router.stand_in=0")
    ended = skipgpt("train", checkpoint, *asked)
    assert ended.status == 0, ended.stderr
    linear = skipgpt("train", info["base"], *asked)
    held = [json.loads(each.stdout)["stages"][0]["held"] for each in (ended, linear)]
    assert held[0]["parameters"] == held[1]["parameters"]
    assert held[0]["trained"] > held[1]["trained"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dry-run", "--processes", 0), "got 0; expected 1 or more"),
        (("--dry-run", "--layout", "single", "--processes", 2), "got single, for 2 processes"),
        (("--dry-run", "--layout", "fsdp"), "one of single, ddp, fsdp2, zero2, zero3; did you"),
        (("--dry-run", "--device", "abacus"), "got 'abacus'"),
        (("--dry-run", "--processes", 3), "3 processes"),
        (("--dry-run", "--quantize", "8bit"), "got --quantize; expected weights as they are"),
        (("--dry-run", "--device", "tpu"), "choosing the device: got 'tpu'"),
        (("--dry-run", "--device", "tpu", "--dtype", "bfloat16"), "choosing the device: got 'tpu'"),
        (("--layout", "ddp"), "accelerate launch"),
        (("--processes", 2), "accelerate launch"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[object, ...], said: str, tmp_path: Path
) -> None:
    ended = skipgpt("train", "nano", "--data", "stdlib", "--out", tmp_path / "out", *arguments)
    assert ended.status == 2
    assert said in " ".join(ended.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
