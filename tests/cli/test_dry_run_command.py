import json
from pathlib import Path

import pytest
import transformers

from command import skipgpt
from runs import shared_checkpoint


def test_the_needs_of_a_model_of_70_billion_are_told_without_weights() -> None:
    arguments = ("--layout", "fsdp2", "--processes", 8, "--recipe", "paper", "--device", "cuda")
    ended = skipgpt("train", "llama-3.1-70b", "--dry-run", *arguments, "--json")
    assert ended.status == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [stage["stage"] for stage in told["stages"]] == ["router", "lora"]
    assert told["loading"] == 2 * 70_553_706_496
    for stage in told["stages"]:
        assert stage["held"]["parameters"] == 70_553_706_496  # as published
        # An eighth of the weights in bfloat16, and of what trains in float32.
        assert stage["memory"]["weights"] * 8 > 2 * 70_553_706_496


def test_a_folder_with_nothing_but_a_config_will_do(tmp_path: Path) -> None:
    transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    ).save_pretrained(tmp_path / "base")
    ended = skipgpt("train", tmp_path / "base", "--dry-run", "--stages", "router")
    assert ended.status == 0, ended.stderr
    assert "stage router" in ended.stdout
    assert "GB a device" in ended.stdout


def test_without_a_dry_run_data_and_a_folder_are_asked_for(tmp_path: Path) -> None:
    ended = skipgpt("train", "nano", "--out", tmp_path / "out")
    assert ended.status == 2
    assert "--data" in ended.stderr


def test_a_dry_run_of_nothing_says_so() -> None:
    ended = skipgpt("train", "no/such/model", "--dry-run")
    assert ended.status == 1
    assert "no/such/model" in ended.stderr


def test_a_dry_run_of_a_checkpoint_is_of_its_base() -> None:
    ended = skipgpt("train", shared_checkpoint(), "--dry-run", "--stages", "router", "--json")
    assert ended.status == 0, ended.stderr
    base = json.loads((shared_checkpoint() / "skipgpt_config.json").read_text())["base"]
    same = skipgpt("train", base, "--dry-run", "--stages", "router", "--json")
    assert (
        json.loads(ended.stdout)["stages"][0]["held"]
        == (json.loads(same.stdout)["stages"][0]["held"])
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dry-run", "--processes", 0), "0 processes"),
        (("--dry-run", "--layout", "single", "--processes", 2), "2 processes for single"),
        (("--dry-run", "--layout", "fsdp"), "one of single, ddp, fsdp2, zero2, zero3"),
        (("--dry-run", "--processes", 3), "3 processes"),
        (("--dry-run", "--quantize", "8bit"), "is not counted"),
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
