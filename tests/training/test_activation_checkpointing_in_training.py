from pathlib import Path

import pytest

from cases import checkpoint_activations, routed
from runs import metrics, rows, run, stage_trainer, tiny_config, weights
from skipgpt.errors import ConfigError
from skipgpt.training.stages import prepare

old_name = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")


@old_name
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


@old_name
def test_the_setting_really_recomputes_every_layer(tmp_path: Path) -> None:
    model, calls = routed(), []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    config = tiny_config("paper", activation_checkpointing=True, router_stage__steps=1)
    stage_trainer(model, "router", config, rows(2), tmp_path).train()
    assert len(calls) == 2 * 3


def test_reentrant_checkpointing_stops_training_before_its_first_step(tmp_path: Path) -> None:
    trainer = stage_trainer(routed(), "router", tiny_config(), rows(), tmp_path)
    checkpoint_activations(trainer.model, use_reentrant=True)
    with pytest.raises(ConfigError, match="reentrant activation checkpointing"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_setting_calls_nothing_deprecated() -> None:
    prepare(routed(), "router", tiny_config(activation_checkpointing=True))
