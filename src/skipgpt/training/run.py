"""The chain: base model, routers, stages, calibration, checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.checkpoint.saving import describe, write
from skipgpt.checkpoint.tensors import trained_tensors
from skipgpt.config import Stage, TrainConfig
from skipgpt.config.settings import to_dict
from skipgpt.data import Blocks, load_blocks
from skipgpt.evaluation.perplexity import Perplexity
from skipgpt.fitting.fit import check_length
from skipgpt.model.base import choose_dtype
from skipgpt.model.loading.bitsandbytes import check_quantization, quantization_of
from skipgpt.model.loading.gguf import is_gguf
from skipgpt.model.loading.limits import check_rows
from skipgpt.model.lora import with_own_targets
from skipgpt.routing.decision import RuleAt
from skipgpt.system.distributed import first_alone, init, layout, load_whole
from skipgpt.system.folder_lock import writing_to
from skipgpt.system.progress import advancing
from skipgpt.system.stopping import stoppable
from skipgpt.training.fit_stage import check_fit, run_fit
from skipgpt.training.launcher import check_launcher, check_whole
from skipgpt.training.measurement import Passes
from skipgpt.training.run_record import (
    RESUME,
    begin_run,
    check_folder,
    compare_run,
    finished_stages,
    forget_states,
    held_out_of,
    latest_state,
    note_measured,
    what_a_stop_leaves,
)
from skipgpt.training.run_stage import run_stage
from skipgpt.training.run_start import Base, start, with_routers_of, within_reach
from skipgpt.training.stages import plan


@dataclass(frozen=True)
class TrainResult:
    """What a run produced.

    Attributes:
        info: info of the checkpoint that was written.
        held_out: loss and sparsity on held-out text: `dense`, then one entry per stage.
        folder: folder of the checkpoint.
        seconds_measuring: seconds of this call spent on the losses in `held_out`.
    """

    info: CheckpointInfo
    held_out: dict[str, Perplexity]
    folder: str
    seconds_measuring: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def train(
    base: Any,
    data: list[str],
    out: str | Path,
    config: TrainConfig,
    *,
    tokenizer: Any = None,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    rule: RuleAt | None = None,
    or_modules: bool = False,
) -> TrainResult:
    """Train routers, heal with LoRA, calibrate, and write a checkpoint after each stage.

    Args:
        base: hub id, folder, GGUF file, `nano`, a checkpoint to train further stages of, or a
            model that transformers loaded, with routers or without, which is trained in place.
        data: sources of text; see `skipgpt.data.read_documents`.
        out: the folder of the checkpoint.
        config: everything else; see `skipgpt.config.recipe`.
        tokenizer: of a model; loaded from where the model came from if None.
        device: where to train.
        dtype: dtype of the base model; a model is trained in the one that it has.
        quantize: hold the base's weights in `8bit` or `4bit`, through bitsandbytes; if None, as
            they are stored, or as the checkpoint `base` was trained.
        resume: continue where an earlier call with the same arguments stopped.
        overwrite: replace what is in `out`.
        rule: decision rule while routers train, by the share of the stage that is done; Gumbel
            sampling (the paper) if None.
        or_modules: count modules, with a warning, where skipping cannot save the target in the
            unit of `config.budget`.

    Raises:
        SkipGPTError: on any failure; `out` then holds the last good state.

    Example:
        skipgpt.train("nano", ["stdlib"], "out/nano-25", skipgpt.recipe("default"))
    """
    out = Path(out)
    check_launcher(device)
    start_from = Base.of(base, tokenizer)
    # Before processes wait for each other: a fit is refused to several.
    check_fit(config, is_new=start_from.is_new)
    device = init(device)
    kept = what_a_stop_leaves(out, resume)
    run = _Run(start_from, data, out, config, device, dtype, quantize, resume, rule, or_modules)
    with stoppable(f"training into {out}", kept), advancing(), writing_to(out):
        run.check(overwrite)
        run.load()
        run.plan()
        run.read_text()
        run.begin()
        run.prepare()
        for stage in run.left:
            run.run_stage(stage)
        return run.result()


@dataclass
class _Run:
    """One run, step by step; each step of `train` is a method.

    Attributes:
        done: stages that an earlier call finished.
        left: stages to run.
        held_out: what was measured after each stage.
        sharded: whether several processes hold the model in shards.
    """

    base: Base
    data: list[str]
    out: Path
    config: TrainConfig
    device: str
    dtype: str
    quantize: str | None
    resume: bool
    rule: RuleAt | None
    or_modules: bool
    done: tuple[str, ...] = ()
    left: list[Stage] = field(default_factory=list)
    held_out: dict[str, Perplexity] = field(default_factory=dict)
    sharded: bool = field(default_factory=lambda: layout() != "whole")
    model: Any = None
    tokenizer: Any = None
    info: CheckpointInfo = field(init=False)
    blocks: Blocks = field(init=False)
    passes: Passes = field(init=False)

    def check(self, overwrite: bool) -> None:
        """Refuse what can be refused before anything is loaded."""
        torch.manual_seed(self.config.seed)
        check_quantization(self.quantize)
        check_folder(self.out, self.resume, overwrite)
        if self.resume:
            self.done = finished_stages(self.out)
            compare_run(self.out, {"quantize": self.quantize})
        self.left = [stage for stage in self.config.stages if stage not in self.done]

    def load(self) -> None:
        """Load the model to train, or what an earlier call made of it."""
        home = self.device
        if self.sharded:  # FSDP2 and ZeRO move it to the device shard by shard
            home = "cpu"
            self.dtype = str(choose_dtype(self.dtype, self.device)).removeprefix("torch.")
        self._start(Base(str(self.out)) if self.done else self.base, home)
        check_whole(quantization_of(self.model))

    def plan(self) -> None:
        """Settle the config: routers and LoRA targets of the model, a target within reach."""
        config = with_routers_of(self.model, self.config)
        lora = with_own_targets(self.model, config.lora_stage)
        config = dataclasses.replace(config, lora_stage=lora)
        self.config = within_reach(self.model, config, self.or_modules and self.base.is_new)
        from skipgpt.training.loop.arguments import training_arguments

        for stage in self.config.stages:  # refuses what transformers does not know
            if stage != "fit":
                where = torch.device(self.device)
                training_arguments(plan(stage, self.config), self.config, self.out, where)

    def read_text(self) -> None:
        """Read the text and cut it into rows."""
        tokens = self.config.train_tokens
        self.blocks = load_blocks(self.data, self.tokenizer, self.config.data, train_tokens=tokens)
        train_rows, held_out = self.blocks.train, self.blocks.held_out
        check_rows("reading the text", self.model, self.tokenizer, train_rows, held_out)
        if "fit" in self.left:
            check_length(self.model, train_rows, self.config.fit_stage.tokens)

    def begin(self) -> None:
        """Write run.json, or compare it with that of the resumed run."""
        facts = {
            "base": self.base.name,
            "data": self.data,
            "config": to_dict(self.config),
            "base_weights": self.info.fingerprint,
            "base_settings": self.info.base_settings,
            "dtype": str(self.model.dtype),
            "quantize": self.quantize,
            "data_fingerprint": self.blocks.fingerprint,
            "documents": {"train": self.blocks.documents[0], "held_out": self.blocks.documents[1]},
        }
        if self.resume:
            compare_run(self.out, facts)
        else:
            used = ["bitsandbytes"] * bool(quantization_of(self.model))
            used += ["gguf"] * is_gguf(self.info.base)
            rows = {"train": len(self.blocks.train), "train_inside_a_document": self.blocks.inside}
            begin_run(self.out, facts | {"rows": rows}, *used)
        self.held_out = held_out_of(self.out)

    def prepare(self) -> None:
        """Initialise new routers, unless a stage does, and measure the dense model."""
        state = latest_state(self.out / RESUME / self.left[0]) if self.left else None
        fresh = self.base.is_new and not self.done and state is None
        starts = fresh and "fit" not in self.config.stages
        self.passes = Passes(self.config, self.blocks, self.out, starts=starts)
        if not (self.sharded and self.left):  # else the first stage does, once it has its shards
            self.passes.before_stages(self.model)

    def run_stage(self, stage: Stage) -> None:
        """Run one stage, calibrate, measure, and write the checkpoint."""
        first = stage == self.left[0]
        if self.sharded and not first:  # what one stage sharded, the next one cannot adapt
            load_whole()
            self._start(Base(str(self.out)), "cpu")
        if stage == "fit":
            run_fit(self.model, self.config, self.blocks.train, self.out)
        else:
            dense = self.passes.dense
            self.model = run_stage(
                self.model,
                stage,
                self.config,
                self.blocks,
                self.out,
                rule=self.rule,
                dense_loss=dense.nll_per_token if dense else None,
                device=self.device,
                begin=self.passes.before_stages if self.sharded and first else None,
            )
        measured = self.passes.after_stage(self.model, stage)
        self.held_out[stage] = measured
        self._save(stage, measured)
        note_measured(self.out, stage, measured)

    def result(self) -> TrainResult:
        """Return the result; delete the states to resume from."""
        forget_states(self.out)
        measured = {"dense": cast("Perplexity", self.passes.dense)}
        measured |= {stage: self.held_out[stage] for stage in self.config.stages}
        return TrainResult(self.info, measured, str(self.out), self.passes.seconds_measuring)

    def _start(self, base: Base, device: str) -> None:
        self.model, self.tokenizer, self.info = start(
            base, self.config, device, self.dtype, self.quantize
        )

    def _save(self, stage: Stage, measured: Perplexity) -> None:
        known, config = self.info, self.config
        info = dataclasses.replace(
            describe(self.model, known.base, fingerprint=known.fingerprint),
            base=known.base,
            base_settings=known.base_settings,
            revision=known.revision,
            recipe=config.recipe,
            stages=(*known.stages, stage),
            target_sparsity=config.target_sparsity,
            budget=config.budget,
            sparsity=measured.sparsity,
            keep=measured.keep_rates,
        )
        tensors = trained_tensors(self.model)
        self.info = first_alone(write)(self.model, self.out, info, tensors, overwrite=True)
