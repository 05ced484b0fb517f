import json
from pathlib import Path

import transformers

from command import skipgpt


def test_the_needs_of_a_model_of_70_billion_are_told_without_weights() -> None:
    arguments = ("--layout", "fsdp2", "--processes", 8, "--recipe", "paper", "--device", "cuda")
    ended = skipgpt("train", "llama-3.1-70b", "--dry-run", *arguments, "--json")
    assert ended.status == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [stage["stage"] for stage in told["stages"]] == ["router", "lora"]
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
