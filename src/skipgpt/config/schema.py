"""What a run is made of, as frozen dataclasses that check themselves.

`RouterConfig` says what the routers are and travels in the checkpoint. `TrainConfig` says how they
were made; its nested stages and `DataConfig` each answer one question. `Placement`
says from where and onto which device a command loads its model.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, replace
from typing import Literal

from skipgpt.config.budget import Budget, TimedForward, check_sparsity
from skipgpt.config.checks import check_choices, check_counts
from skipgpt.config.stage_settings import FitStage, LoraStage, RouterStage
from skipgpt.errors import ConfigError

Stage = Literal["fit", "router", "lora", "joint"]

MOST_RANK = 128
"""Largest rank that a share gives; wide models would pay more memory than it gains."""


@dataclass(frozen=True)
class RouterConfig:
    """What a router is (paper).

    Attributes:
        head: `linear` maps D to two logits; `mlp` is the authors' D, D/4, ReLU, 2.
        input: `layer_input` lets both routers of a layer read the residual stream that enters the
            layer, as every released checkpoint does; `module_input` lets each read the stream
            that enters its own module, as the paper's formula has it.
        normalize: divide the router's input by its root mean square, without parameters.
        kv: `dense` computes and caches keys and values for every token in every layer, as the
            paper has it. `skip` leaves none where a token skips attention: the cache shrinks by
            the attention sparsity, and the model has to be trained that way.
        decides: what gets a decision of its own: each `module` of a token (paper); each `layer` of
            a token, whose attention router then decides for its MLP, too; or each module of a
            whole `sequence`, by the mean margin of the tokens in a forward, later ones included.
        stand_in: rank of the learned linear map that runs where a module is skipped; below 1, a
            share of the width, at most 128 and above 16 a multiple of 16; 0 is none (paper).
    """

    head: Literal["linear", "mlp"] = "linear"
    input: Literal["layer_input", "module_input"] = "layer_input"
    normalize: bool = False
    kv: Literal["dense", "skip"] = "dense"
    decides: Literal["module", "layer", "sequence"] = "module"
    stand_in: float = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if (rank := self.stand_in) >= 1:
            if rank != int(rank):
                expected = "a whole number, or a share below 1"
                raise ConfigError("reading stand_in", got=str(rank), expected=expected)
            object.__setattr__(self, "stand_in", int(rank))

    def resolved(self, width: int) -> RouterConfig:
        """Return these settings with a number as the rank, for a model of this width.

        Example:
            >>> RouterConfig(stand_in=0.2).resolved(576).stand_in
            112
        """
        rank = 16 * round(r / 16) if (r := self.stand_in * width) > 16 else max(1, round(r))
        return replace(self, stand_in=min(MOST_RANK, rank)) if 0 < self.stand_in < 1 else self


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is cut.

    Attributes:
        block_size: tokens per training row (T).
        held_out: share of documents kept for calibration and evaluation.
        max_documents: read no more than this many documents; 0 reads all.
        text_field: the field of a JSONL or parquet row that holds the text.
        control_tokens: whether control tokens that are written in a document count as such; else
            they are text.
        seed: random seed of the order in which a hub dataset is read, apart from the run's seed.
        calibration_tokens: held-out tokens that set the thresholds.
        evaluation_tokens: other held-out tokens that a finished stage is measured on.
    """

    block_size: int = 256
    held_out: float = 0.05
    max_documents: int = 0
    text_field: str = "text"
    control_tokens: bool = False
    seed: int = 0
    calibration_tokens: int = 32768
    evaluation_tokens: int = 32768

    def __post_init__(self) -> None:
        check_choices(self)
        if self.block_size < 2:
            raise ConfigError("reading block_size", got=str(self.block_size), expected="2 or more")
        if not 0 < self.held_out < 1:
            raise ConfigError(
                "reading held_out", got=str(self.held_out), expected="a share between 0 and 1"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        target_sparsity: share of the dense model to save, in the unit of `budget`.
        budget: what the share counts: `modules`, each (token, module) pair the same (paper);
            `flops`, with keys and values still computed and routers and stand-ins added; or
            `time`, by what `skipgpt profile` measured on this machine.
        budget_time: the forward whose seconds `time` counts.
        stages: what to train, in order.
        recipe: the name of the settings that this run started from.
        batch_size: rows per forward.
        accumulation: forwards per optimizer step.
        max_grad_norm: gradients are clipped to this norm.
        weight_decay: of AdamW.
        seed: random seed of initial weights, order of rows and Gumbel noise.
        activation_checkpointing: recompute activations in the backward pass (non-reentrant only).
        log_every: steps between lines of metrics.jsonl.
        save_every: steps between resumable states.
        report_to: trackers of transformers ("tensorboard", "wandb", …); metrics.jsonl is always on.
    """

    target_sparsity: float = 0.25
    budget: Budget = "modules"
    budget_time: TimedForward = field(default_factory=TimedForward)
    stages: tuple[Stage, ...] = ("router", "lora")
    recipe: str = "default"
    router: RouterConfig = field(default_factory=RouterConfig)
    fit_stage: FitStage = field(default_factory=FitStage)
    router_stage: RouterStage = field(default_factory=RouterStage)
    lora_stage: LoraStage = field(default_factory=LoraStage)
    data: DataConfig = field(default_factory=DataConfig)
    batch_size: int = 16
    accumulation: int = 1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    activation_checkpointing: bool = False
    log_every: int = 10
    save_every: int = 500
    report_to: tuple[str, ...] = ()

    @property
    def train_tokens(self) -> int:
        """Tokens of training text that the most demanding stage or fit takes."""
        routers, lora = self.router_stage, self.lora_stage
        steps = {"router": routers.steps, "joint": routers.steps, "lora": lora.steps}
        rows = self.batch_size * self.accumulation
        needs = [steps.get(each, 0) * rows * self.data.block_size for each in self.stages]
        if "fit" in self.stages:
            needs += [self.fit_stage.tokens, self.fit_stage.stand_in_tokens]
        if self.router.stand_in:
            needs.append(routers.fit_tokens)
        return max(needs)

    def __post_init__(self) -> None:
        check_choices(self)
        check_sparsity(self.target_sparsity, "target_sparsity", self.budget)
        if self.seed >= 2**32:
            raise ConfigError("reading seed", got=str(self.seed), expected="below 4294967296")
        named = "fit, router, lora or joint"
        for stage in self.stages:
            if stage not in typing.get_args(Stage):
                raise ConfigError("reading stages", got=repr(stage), expected=named)
        if len(set(self.stages)) < len(self.stages):
            got = ", ".join(self.stages)
            raise ConfigError("reading stages", got=got, expected="each stage once")
        if not self.stages:
            raise ConfigError("reading stages", got="no stage", expected=named)
        if self.router_stage.start == "static" and "fit" not in self.stages:
            raise ConfigError(
                "reading router_stage.start",
                got="static without stage fit",
                expected="random or keep: the greedy start of version 0.1 is gone",
                todo="put fit in front of the stages, which starts better (docs/results.md)",
            )
        check_counts(self, "batch_size", "accumulation", "log_every", "save_every")


@dataclass(frozen=True)
class Placement:
    """What `skipgpt.load` takes by these names, for functions that load models themselves.

    Attributes:
        device: where models are put.
        dtype: of the base model.
        base: where the base model lies, if not where the checkpoint says.
        quantize: `int8`, for a checkpoint that is loaded in 8 bits.
    """

    device: str = "cpu"
    dtype: str = "auto"
    base: str | None = None
    quantize: str | None = None
