"""Training runs and checkpoints of a second: a tiny base model, short documents, few steps."""

from __future__ import annotations

import atexit
import functools
import gc
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import default_data_collator
from transformers.trainer_callback import PrinterCallback

from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.checkpoint.saving import describe, save
from skipgpt.comparison.compare import compare
from skipgpt.comparison.result import Comparison
from skipgpt.config import RouterConfig, Stage, TrainConfig, recipe
from skipgpt.config.settings import override
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.model.base import load_base
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import RuleAt
from skipgpt.training.loop.arguments import training_arguments
from skipgpt.training.loop.callbacks import StopRequest
from skipgpt.training.loop.trainer import RoutingTrainer
from skipgpt.training.run import TrainResult, train
from skipgpt.training.stages import plan, prepare, with_lora
from tiny import byte_tokenizer, save_base, tiny_base

TINY = {
    "data.block_size": 16,
    "data.held_out": 0.3,
    "data.calibration_tokens": 128,
    "data.evaluation_tokens": 128,
    "fit_stage.tokens": 512,
    "fit_stage.stand_in_tokens": 256,
    "fit_stage.rounds": 1,
    "router_stage.steps": 6,
    "router_stage.static_tokens": 64,
    "lora_stage.steps": 4,
    "lora_stage.rank": 4,
    "batch_size": 2,
    "log_every": 1,
    "stages": "router",
}
ARGUMENTS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
"""The same settings for the command line."""


def tiny_config(name: str = "paper", **changes: Any) -> TrainConfig:
    """A recipe cut down to seconds; `router_stage__steps=3` changes a nested setting."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return override(recipe(name), TINY | dotted)


def write_documents(folder: Path, name: str = "stories.jsonl", count: int = 40) -> Path:
    """Documents that differ, about 60 bytes each."""
    path = folder / name
    rows = [
        {"text": f"Story {n} of {name}: the {n * n} cats sat on {n + 3} mats and slept."}
        for n in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def rows(count: int = 12, tokens: int = 16, seed: int = 5) -> Tensor:
    """Token ids [N, T] at random."""
    return torch.randint(1, 257, (count, tokens), generator=torch.Generator().manual_seed(seed))


def run(base: Path, out: Path, config: TrainConfig | None = None, **options: Any) -> TrainResult:
    """Train a tiny base on the documents beside it; the dial has three points only."""
    data = base.parent / "stories.jsonl"
    if not data.exists():
        write_documents(base.parent)
    gc.freeze()  # the Trainer collects garbage: let it not look through the libraries
    with mock.patch("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5)):
        return train(str(base), [str(data)], out, config or tiny_config(), **options)


@functools.cache
def straight_run(config: TrainConfig) -> tuple[Path, Path]:
    """A base and a run of it that nothing interrupts, for tests that only read."""
    folder = Path(tempfile.mkdtemp(prefix="skipgpt-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = save_base(folder / "base")
    run(base, folder / "straight", config)
    return base, folder / "straight"


COMPARED = {key: value for key, value in TINY.items() if key != "stages"} | {
    "router_stage.steps": 3,
    "lora_stage.steps": 2,
    "lora_stage.distill": 0.0,  # by KL to itself dense would stay as it is
    "router_stage.fit_tokens": 64,
}


def compared(
    base: Path,
    out: Path,
    *methods: str,
    settings: dict[str, Any] | None = None,
    draw: bool = False,
    **options: Any,
) -> Comparison:
    """Compare methods on a tiny base and the documents beside it, in a few steps each."""
    data = base.parent / "stories.jsonl"
    if not data.exists():
        write_documents(base.parent)
    gc.freeze()
    given = {"budget": "modules"} | COMPARED | (settings or {})
    with ExitStack() as stack:
        stack.enter_context(mock.patch("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5)))
        if not draw:  # a picture takes as long as a training
            stack.enter_context(mock.patch("skipgpt.comparison.compare.plot"))
        return compare(str(base), [str(data)], out, methods, settings=given, **options)


@contextmanager
def stopping_at(step: int, stage: str = "router") -> Iterator[None]:
    """A signal arrives during this step of this stage."""
    on_step_end = StopRequest.on_step_end

    def signalled(self: StopRequest, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        if state.global_step == step and Path(args.output_dir).name == stage:
            self.received = "SIGTERM"
        on_step_end(self, args, state, *rest, **more)

    with mock.patch.object(StopRequest, "on_step_end", signalled):
        yield


def stage_trainer(
    model: nn.Module,
    stage: Stage,
    config: TrainConfig,
    data: Tensor,
    folder: Path,
    rule: RuleAt | None = None,
) -> RoutingTrainer:
    """The trainer of one stage, ready to train a routed model on token ids [N, T]."""
    gc.freeze()
    stage_plan = plan(stage, config)
    trainer = RoutingTrainer(
        plan=stage_plan,
        config=config,
        rule=rule,
        model=prepare(model, stage, config),
        args=training_arguments(stage_plan, config, folder, torch.device("cpu")),
        train_dataset=[{"input_ids": row, "labels": row} for row in data],
        data_collator=default_data_collator,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that report a step, without their times."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "loss" in line]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in steps]


def weights(out: Path) -> dict[str, bytes]:
    """The bytes of everything that was trained."""
    return {p.name: p.read_bytes() for p in sorted(out.rglob("*.safetensors"))}


def make_checkpoint(
    base: Path, out: Path, *, lora: bool = False, calibrated: bool = True, **options: Any
) -> tuple[nn.Module, CheckpointInfo]:
    """An untrained checkpoint whose routers and LoRA matter; returns its model, too."""
    model, _ = load_base(str(base))
    torch.manual_seed(3)
    add_routers(model, RouterConfig(normalize=True))
    if lora:
        model = with_lora(model, tiny_config().lora_stage)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    if calibrated:
        with mock.patch("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.1, 0.25, 0.5, 0.8)):
            calibrate(model.eval(), rows(16), target=0.25)
    stages = ("router", "lora") if lora else ("router",)
    info = save(model, out, describe(model, str(base), stages=stages), **options)
    return model.eval(), info


@functools.cache
def shared_checkpoint() -> Path:
    """A calibrated checkpoint with LoRA for tests that only read; `base` lies beside it."""
    folder = Path(tempfile.mkdtemp(prefix="skipgpt-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_base(initializer_range=0.2).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    make_checkpoint(folder / "base", folder / "checkpoint", lora=True)
    return folder / "checkpoint"


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor | None = None) -> Tensor:
    """Logits over rows of random tokens."""
    return model(input_ids=rows(3) if tokens is None else tokens, use_cache=False).logits
