from pathlib import Path

import pytest
import torch

from cases import routed
from runs import metrics, run, rows, stage_trainer, tiny_config, weights
from skipgpt.errors import ConfigError


@pytest.mark.parametrize(
    "changes", [{"stages": "router"}, {"stages": "joint", "accumulation": 2}], ids=str
)
def test_training_with_activation_checkpointing_equals_training_without(
    changes: dict[str, object], base_folder: Path, tmp_path: Path
) -> None:
    for name, on in (("off", False), ("on", True)):
        config = tiny_config("paper", activation_checkpointing=on, **changes)
        run(base_folder, tmp_path / name, config)
    assert weights(tmp_path / "on") == weights(tmp_path / "off")
    assert metrics(tmp_path / "on") == metrics(tmp_path / "off")


def test_the_setting_really_recomputes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "torch.utils.checkpoint.checkpoint",
        lambda *args, **kwargs: (
            calls.append(kwargs["use_reentrant"]) or checkpoint(*args, **kwargs)
        ),
    )
    config = tiny_config("paper", activation_checkpointing=True, router_stage__steps=1)
    stage_trainer(routed(), "router", config, rows(2), tmp_path).train()
    assert calls == [False] * 3


def test_reentrant_checkpointing_stops_training_before_its_first_step(tmp_path: Path) -> None:
    trainer = stage_trainer(routed(), "router", tiny_config(), rows(), tmp_path)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigError, match="reentrant activation checkpointing"):
        trainer.train()
    assert trainer.state.global_step == 0
