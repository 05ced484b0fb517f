import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runs import metrics, run, stopping_at, straight_run, tiny_config, weights
from skipgpt.checkpoint.folder import read_info
from skipgpt.errors import StoppedError
from skipgpt.training.run import train

RUNS: dict[str, dict[str, Any]] = {
    "paper": {"name": "paper"},
    "default": {"name": "default"},
    "accumulating": {"name": "paper", "accumulation": 2, "batch_size": 1},
    "joint": {"name": "paper", "stages": "joint"},
}


def _same(one: Path, other: Path) -> None:
    """Equal to the last bit: weights, curve, measurements and every logged number."""
    assert weights(one) == weights(other)
    assert read_info(one) == read_info(other)
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize(("name", "step"), [("paper", 1), *((name, 4) for name in RUNS)])
def test_a_stopped_and_resumed_stage_ends_where_a_straight_one_does(
    name: str, step: int, tmp_path: Path
) -> None:
    config = tiny_config(**RUNS[name])
    base, straight = straight_run(config)
    with stopping_at(step, config.stages[0]), pytest.raises(StoppedError) as caught:
        run(base, tmp_path / "stopped", config)
    assert f"got SIGTERM at step {step} of 6" in str(caught.value)
    assert "--resume" in caught.value.todo
    assert [line["step"] for line in metrics(tmp_path / "stopped")] == list(range(1, step + 1))
    run(base, tmp_path / "stopped", config, resume=True)
    _same(tmp_path / "stopped", straight)
    assert not (tmp_path / "stopped" / "trainer").exists()


def test_a_run_stopped_in_its_second_stage_does_not_repeat_the_first(tmp_path: Path) -> None:
    config = tiny_config("default", stages="router,lora")
    base, straight = straight_run(config)
    with stopping_at(2, "lora"), pytest.raises(StoppedError, match="stage lora"):
        run(base, tmp_path / "stopped", config)
    assert read_info(tmp_path / "stopped").stages == ("router",)
    before = _routers(tmp_path / "stopped")
    resumed = run(base, tmp_path / "stopped", config, resume=True)
    after = _routers(tmp_path / "stopped")  # beside stand-ins, which heal on
    assert all(after[name].equal(before[name]) for name in before)
    assert resumed.info.stages == ("router", "lora")
    _same(tmp_path / "stopped", straight)


def _routers(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "routers.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "_router." in name}


def test_a_run_lost_before_the_first_state_of_its_second_stage_still_ends_the_same(
    tmp_path: Path,
) -> None:
    config = tiny_config("default", stages="router,lora")
    base, straight = straight_run(config)
    with stopping_at(1, "lora"), pytest.raises(StoppedError):
        run(base, tmp_path / "lost", config)
    shutil.rmtree(tmp_path / "lost" / "trainer" / "lora")
    run(base, tmp_path / "lost", config, resume=True)
    assert weights(tmp_path / "lost") == weights(straight)


def test_a_half_written_state_is_passed_over(tmp_path: Path) -> None:
    config = tiny_config("paper", save_every=2)
    base, straight = straight_run(config)
    with stopping_at(4), pytest.raises(StoppedError):
        run(base, tmp_path / "cut", config)
    states = tmp_path / "cut" / "trainer" / "router"
    assert sorted(p.name for p in states.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    (states / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    run(base, tmp_path / "cut", config, resume=True)
    assert weights(tmp_path / "cut") == weights(straight)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = tiny_config("paper")
    base, straight = straight_run(config)
    shutil.copytree(straight, tmp_path / "out")
    before = weights(tmp_path / "out"), metrics(tmp_path / "out")
    result = run(base, tmp_path / "out", config, resume=True)
    assert (weights(tmp_path / "out"), metrics(tmp_path / "out")) == before
    assert result.info == read_info(tmp_path / "out")


def test_steps_that_were_lost_are_not_logged_twice(tmp_path: Path) -> None:
    config = tiny_config("paper", save_every=2)
    base, straight = straight_run(config)
    with stopping_at(5), pytest.raises(StoppedError):
        run(base, tmp_path / "lost", config)
    shutil.rmtree(tmp_path / "lost" / "trainer" / "router" / "checkpoint-5")
    run(base, tmp_path / "lost", config, resume=True)
    assert metrics(tmp_path / "lost") == metrics(straight)


def test_training_a_healed_checkpoint_further_resumes_with_the_stage_it_was_in(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config("paper", stages="router,lora", router_stage__steps=2)
    run(base_folder, tmp_path / "first", config)
    data = [str(tmp_path / "stories.jsonl")]
    again = (str(tmp_path / "first"), data, tmp_path / "second", config)
    with stopping_at(2, "lora"), pytest.raises(StoppedError):
        train(*again)
    assert read_info(tmp_path / "second").stages == ("router", "lora", "router")
    result = train(*again, resume=True)
    assert result.info.stages == ("router", "lora", "router", "lora")
