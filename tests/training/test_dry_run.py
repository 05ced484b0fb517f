import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from runs import rows, stage_trainer, tiny_config
from skipgpt.config import Stage
from skipgpt.cost.memory import Held, check_layout, memory
from skipgpt.cost.stored import stored_bytes
from skipgpt.data import Blocks
from skipgpt.errors import ConfigError
from skipgpt.model.families.parameter_names import kind_of
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import StraightThrough, Threshold
from skipgpt.training import distillation
from skipgpt.training.dry_run import DryRun, dry_run
from skipgpt.training.run_stage import run_stage
from skipgpt.training.stages import prepare
from tiny import LONG

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


def _needs(
    stage: Stage,
    layout: str = "single",
    processes: int = 1,
    vocab_size: int = 257,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> DryRun:
    config = tiny_config("paper", stages=stage, **SETTINGS | changes)
    return dry_run(
        _config(vocab_size=vocab_size),
        config,
        layout=check_layout(layout, processes),
        processes=processes,
        dtype=dtype,
        device="cpu",
    )


def _real(stage: Stage, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(_config(**changes)).to(dtype)
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


EVERY_CASE = [*itertools.product(("router", "lora"), (0.0, 1.0), (torch.float32, torch.bfloat16))]
EVERY_PAIR = [
    ("router", 1.0, torch.float32),
    ("router", 0.0, torch.bfloat16),
    ("lora", 1.0, torch.bfloat16),
    ("lora", 0.0, torch.float32),
]
"""Each value of stage, distill and dtype meets each of the others."""


class _SeenError(Exception):
    """Ends a run where the test has seen enough."""


class _LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once; views of weights hold none."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._weights = {StorageWeakRef(each.untyped_storage()) for each in weights}
        self._made: dict[StorageWeakRef, int] = {}
        self._bound = 0  # bytes of all in `_made`, whether they are still held or not
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(made):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                ref, size = StorageWeakRef(storage), storage.nbytes()
                if ref not in self._weights:
                    self._bound += size - self._made.get(ref, 0)
                    self._made[ref] = size
        if self._bound > self.peak:  # only then what is gone makes a difference
            self._made = {ref: size for ref, size in self._made.items() if not ref.expired()}
            self._bound = sum(self._made.values())
            self.peak = max(self.peak, self._bound)
        return made


@pytest.mark.parametrize(("stage", "distill", "dtype"), EVERY_CASE if LONG else EVERY_PAIR)
def test_the_peak_of_a_real_step_with_a_large_vocabulary_is_what_is_told(
    stage: Stage,
    distill: float,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distillation, "ROWS", 8)  # of 32 tokens: a part, as in larger steps
    changes = {f"{stage}_stage__distill": distill}
    (told,) = _needs(stage, vocab_size=8192, dtype=dtype, **changes).stages
    config = tiny_config("paper", stages=stage, **SETTINGS | changes)
    model = _real(stage, dtype, vocab_size=8192)
    trainer = stage_trainer(model, stage, config, rows(4), tmp_path)
    with _LiveBytes(trainer.model.parameters()) as live:
        trainer.train()
    # Weights lie there before, and in the second step the state of what trains, which is small;
    # gradients come after the peak.
    assert live.peak == pytest.approx(told.memory.activations + told.memory.logits, rel=0.05)


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


@pytest.mark.parametrize(
    ("layout", "processes", "kv", "execution"),
    [
        ("single", 1, "dense", "sparse"),
        ("single", 1, "skip", "sparse"),
        ("ddp", 2, "dense", "sparse"),
        ("fsdp2", 2, "dense", "sparse"),
        ("fsdp2", 2, "skip", "gated"),
        ("ddp", 2, "skip", "gated"),
        ("zero2", 2, "dense", "sparse"),
        ("zero3", 2, "dense", "gated"),
        ("zero3", 1, "dense", "gated"),
    ],
)
def test_stage_lora_skips_no_work_where_processes_have_to_call_the_same_modules(
    layout: str, processes: int, kv: str, execution: str
) -> None:
    (told,) = _needs("lora", layout, processes, router__kv=kv).stages
    assert told.execution == execution


def test_a_teacher_costs_a_dense_forward() -> None:
    for stage in ("router", "lora"):
        alone, taught = (
            _needs(stage, **{f"{stage}_stage__distill": share}).stages[0].step_flops
            for share in (0.0, 0.5)
        )
        base = transformers.AutoModelForCausalLM.from_config(_config())
        inner = sum(p.numel() for p in base.model.layers.parameters() if p.ndim == 2)
        seen = 4 * 2 * (16 * 17 / 2) * 48 * 5  # scores and values of two causal rows, all layers
        assert taught - alone == 2 * 32 * (inner + 257 * 48) + seen


def test_work_that_is_not_skipped_is_counted() -> None:
    def flops(layout: str, processes: int, kv: str, sparsity: float) -> float:
        changes = {"router__kv": kv, "target_sparsity": sparsity}
        return _needs("lora", layout, processes, **changes).stages[0].step_flops

    assert flops("single", 1, "dense", 0.5) < 0.9 * flops("single", 1, "dense", 0.0)
    assert flops("ddp", 2, "skip", 0.5) == flops("ddp", 2, "skip", 0.0)


@pytest.mark.parametrize(
    ("processes", "stage_of_zero", "kv", "execution"),
    [(1, "2", "skip", "sparse"), (2, "2", "skip", "gated"), (1, "3", "dense", "gated")],
)
def test_a_run_executes_as_its_dry_run_says(
    processes: int,
    stage_of_zero: str,
    kv: str,
    execution: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config("paper", stages="lora", **SETTINGS | {"router__kv": kv})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage_of_zero)
    monkeypatch.setattr("skipgpt.training.run_stage.world_size", lambda: processes)
    plans = []

    def seen(**given: Any) -> None:
        plans.append(given["plan"])
        raise _SeenError

    monkeypatch.setattr("skipgpt.training.loop.trainer.RoutingTrainer", seen)
    monkeypatch.setattr("skipgpt.training.loop.arguments.training_arguments", lambda *_: None)
    blocks = Blocks(rows(4), rows(2), rows(2), "", (1, 1))
    with pytest.raises(_SeenError):
        run_stage(_real("lora"), "lora", config, blocks, tmp_path)
    assert [each.execution for each in plans] == [execution]


def test_a_layout_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'zero"):
        check_layout("zero9", 2)
    with pytest.raises(ConfigError, match="single, for 2 processes"):
        check_layout("single", 2)


def test_the_figures_of_a_dry_run_are_told_as_they_are_held() -> None:
    needs = _needs("router")
    assert needs.to_dict()["stages"][0]["memory"]["total"] == needs.stages[0].memory.total
    assert "total" in str(needs)


def test_the_config_that_is_given_stays_as_it_was() -> None:
    base = _config(dtype="bfloat16")
    config = tiny_config("paper", stages="router", **SETTINGS)
    for dtype in (torch.float32, torch.float16):
        found = dry_run(base, config, layout="single", processes=1, dtype=dtype, device="cpu")
        held = found.stages[0].held
        assert held.weight_bytes == held.parameters * dtype.itemsize
    assert base.to_dict() == _config(dtype="bfloat16").to_dict()
