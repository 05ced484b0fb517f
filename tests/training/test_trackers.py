"""Trackers of transformers: which may be named, and where TensorBoard's files end up."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations import integration_utils

from runs import run, tiny_config
from skipgpt.errors import ConfigError
from skipgpt.training.loop.arguments import training_arguments
from skipgpt.training.stages import plan


class Writer:
    """Stands in for TensorBoard's, which need not be installed."""

    def __init__(self, log_dir: str) -> None:
        self.path = Path(log_dir, "events")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{name} {step}\n")

    def add_text(self, name: str, text: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)


@pytest.mark.usefixtures("tensorboard")
def test_event_files_of_every_stage_outlive_the_run(base_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(report_to=("tensorboard",), stages="router,lora")
    run(base_folder, tmp_path / "out", config)
    for stage, steps in (("router", 6), ("lora", 4)):
        lines = (tmp_path / "out" / "tensorboard" / stage / "events").read_text().splitlines()
        assert f"train/lm_loss {steps}" in lines
        assert "train/keep/attn/0 1" in lines
    assert not (tmp_path / "out" / "trainer").exists()


@pytest.mark.usefixtures("tensorboard")
def test_the_folder_that_the_environment_names_comes_first(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    run(base_folder, tmp_path / "out", tiny_config(report_to=("tensorboard",)))
    assert (tmp_path / "elsewhere" / "events").exists()
    assert not (tmp_path / "out" / "tensorboard").exists()


@pytest.mark.usefixtures("tensorboard")
def test_a_run_that_starts_over_drops_the_events_of_the_one_before(
    base_folder: Path, tmp_path: Path
) -> None:
    run(base_folder, tmp_path / "out", tiny_config(report_to=("tensorboard",)))
    run(base_folder, tmp_path / "out", tiny_config(), overwrite=True)
    assert not (tmp_path / "out" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wandb", "'wandb', which is not installed.*pip install wandb"),
        ("comet_ml", "pip install comet-ml"),
        ("tensorbord", "'tensorbord'; expected one of .*tensorboard"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_written(
    name: str, said: str, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("wandb", "comet"):
        monkeypatch.setattr(integration_utils, f"is_{module}_available", lambda: False)
    with pytest.raises(ConfigError, match=said):
        run(base_folder, tmp_path / "out", tiny_config(report_to=(name,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(integration_utils.INTEGRATION_TO_CALLBACK))
def test_the_install_line_of_every_tracker_is_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = [each for each in dir(integration_utils) if re.fullmatch("is_.*_available", each)]
    for each in tests:
        monkeypatch.setattr(integration_utils, each, lambda: False)
    config = tiny_config(report_to=(name,))
    with pytest.raises(ConfigError, match=f"{name}.*not installed.*pip install"):
        training_arguments(plan("router", config), config, tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("given", "expected"), [((), []), (("tensorboard", "wandb"), ["tensorboard", "wandb"])]
)
def test_trackers_are_passed_through_and_none_is_chosen_by_itself(
    given: tuple[str, ...],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in given:
        monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: True)
    config = tiny_config(report_to=given)
    assert (
        training_arguments(plan("router", config), config, tmp_path, torch.device("cpu")).report_to
        == expected
    )
