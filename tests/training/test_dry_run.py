from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runs import rows, stage_trainer, tiny_config
from skipgpt.config import Stage
from skipgpt.cost.memory import Held, check_layout, memory
from skipgpt.cost.stored import stored_bytes
from skipgpt.errors import ConfigError
from skipgpt.model.names import kind_of
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import StraightThrough, Threshold
from skipgpt.training.dry_run import DryRun, dry_run
from skipgpt.training.stages import prepare

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 257,
}
SETTINGS = {
    "router__stand_in": 4,
    "router__normalize": True,
    "lora_stage__steps": 2,
    "router_stage__steps": 2,
    "batch_size": 2,
}


def _config(**changes: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**SHAPE | changes)


def _needs(stage: Stage, layout: str = "single", processes: int = 1, **changes: Any) -> DryRun:
    config = tiny_config("paper", stages=stage, **SETTINGS | changes)
    return dry_run(
        _config(),
        config,
        layout=check_layout(layout, processes),
        processes=processes,
        dtype=torch.float32,
        device="cpu",
    )


def _real(stage: Stage) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(_config())
    return add_routers(model, tiny_config(**SETTINGS).router)


@pytest.mark.parametrize("stage", ["router", "lora", "joint"])
def test_parameters_and_the_optimisers_state_are_those_of_a_real_run(
    stage: Stage, tmp_path: Path
) -> None:
    (told,) = _needs(stage).stages
    config = tiny_config("paper", stages=stage, **SETTINGS)
    trainer = stage_trainer(_real(stage), stage, config, rows(4), tmp_path)
    trainer.train()
    named = list(trainer.model.named_parameters())
    assert told.held.parameters == sum(p.numel() for n, p in named if kind_of(n) == "base")
    assert told.held.trained == sum(p.numel() for _, p in named if p.requires_grad)
    assert told.memory.weights == sum(p.numel() * 4 for _, p in named)
    states = trainer.optimizer.state_dict()["state"].values()
    found = sum(t.numel() * t.element_size() for state in states for t in state.values())
    assert told.memory.optimizer == found


@pytest.mark.parametrize("stage", ["router", "lora", "joint"])
def test_activations_are_what_autograd_keeps_in_a_real_forward(stage: Stage) -> None:
    (told,) = _needs(stage).stages
    config = tiny_config("paper", stages=stage, **SETTINGS)
    model = prepare(_real(stage).train(), stage, config)
    rule = Threshold() if stage == "lora" else StraightThrough()
    found = stored_bytes(model, rows=2, tokens=16, rule=rule)
    # Masks, positions and a few scalars are counted once here and in proportion there.
    assert told.memory.activations == pytest.approx(found, rel=0.02)


def test_checkpointing_keeps_a_stream_a_layer_and_one_layer_whole() -> None:
    (off,), (on,) = _needs("router").stages, _needs("router", activation_checkpointing=True).stages
    assert on.memory.activations < 0.5 * off.memory.activations
    assert on.step_flops > off.step_flops


@pytest.mark.parametrize(
    ("layout", "shares"),
    [
        ("ddp", {"weights": 1, "gradients": 1, "optimizer": 1}),
        ("zero2", {"weights": 1, "gradients": 4, "optimizer": 4}),
        ("fsdp2", {"weights": 4, "gradients": 4, "optimizer": 4}),
        ("zero3", {"weights": 4, "gradients": 4, "optimizer": 4}),
    ],
)
def test_each_layout_divides_what_it_divides(layout: str, shares: dict[str, int]) -> None:
    held = Held(1000, 4000, 500, 800, trained=100, trained_tensors=0)
    one = memory(held, "single", 1, activations=7, logits=5)
    four = memory(held, check_layout(layout, 4), 4, activations=7, logits=5)
    copies = {"optimizer": 1.5} if layout.startswith("zero") else {}
    for name, share in shares.items():
        assert getattr(four, name) == getattr(one, name) * copies.get(name, 1) / share
    assert four.at_work == (2 * 500 + 800 if shares["weights"] == 4 else 0)
    assert four.total == sum(vars(four).values())


def test_more_processes_share_the_rows_and_the_time() -> None:
    (one,), (two,) = _needs("router").stages, _needs("router", "ddp", 2).stages
    assert (one.rows, two.rows) == (2, 1)
    assert two.seconds == pytest.approx(one.seconds / 2)
    assert two.step_flops == pytest.approx(one.step_flops)
    assert two.memory.activations < one.memory.activations


def test_a_layout_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'zero"):
        check_layout("zero9", 2)
    with pytest.raises(ConfigError, match="single, for 2 processes"):
        check_layout("single", 2)


def test_the_figures_of_a_dry_run_are_told_as_they_are_held() -> None:
    needs = _needs("router")
    assert needs.to_dict()["stages"][0]["memory"]["total"] == needs.stages[0].memory.total
    assert "total" in str(needs)
