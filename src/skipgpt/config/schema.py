"""What a run is made of, as frozen dataclasses that check themselves.

`RouterConfig` says what the routers are and travels in the checkpoint. `TrainConfig` says how they
were made; its nested stages and `DataConfig` each answer one question.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from skipgpt.config.budget import Budget, TimedForward, check_sparsity
from skipgpt.config.checks import check_choices, check_counts, check_shares
from skipgpt.errors import ConfigError

Stage = Literal["fit", "router", "lora", "joint"]
ALL_LINEAR = ("all-linear",)
QUERY_VALUE_GATE = ("query-value-gate",)

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
        stand_in: rank of the learned linear map that runs where a module is skipped; below 1, as a
            share of the width (in 16s, if that is more), at most 128; 0 is none (paper).
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
class FitStage:
    """How routers and stand-ins are fitted without training (docs/fitting.md).

    Attributes:
        tokens: training tokens that costs are measured on.
        stand_in_tokens: training tokens that stand-ins are fitted on.
        draws: labels drawn per position; each costs one more backward pass.
        batch_size: rows per forward.
        by_token: routers predict the cost per token; else each predicts its module's mean, a static
            choice.
    """

    tokens: int = 32768
    stand_in_tokens: int = 32768
    draws: int = 1
    batch_size: int = 4
    by_token: bool = True

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "tokens", "stand_in_tokens", "draws", "batch_size")


@dataclass(frozen=True)
class RouterStage:
    """How routers are trained while the base stays frozen (paper).

    Attributes:
        steps: optimizer steps.
        learning_rate: peak rate of AdamW.
        rate_width: the hidden size that the rate is meant for; at another D it is scaled by
            rate_width / D, since AdamW moves every weight alike and a margin sums D of them. 0
            takes the rate as it is.
        schedule: shape of the rate over the stage; any scheduler name of transformers.
        warmup: share of the steps that warm up.
        alpha: weight of the budget term in the loss.
        budget_softness: within this distance of the target the slope of the budget term is in
            proportion to the distance (Huber); 0 keeps it at alpha however near (paper).
        temperature_start: Gumbel temperature at the first step.
        temperature_end: Gumbel temperature at the last step.
        noise: scale of the Gumbel noise; 1 is the paper's, less preserves a good start.
        distill: share of the loss that is KL to the dense model; the rest is the loss on text
            (paper: 0).
        start: `random` weights (Kaiming, the authors' code), or `keep`: constant margins above 0,
            so that training begins near the dense model. `static`, of version 0.1, is accepted
            where stage fit sets the start.
        start_margin: size of the constant margins. Gumbel noise overrules a margin of 1 for 27 %
            of the tokens, of 3 for 5 %.
        stand_in_rate: peak rate of AdamW for stand-ins.
        static_tokens: training tokens that static methods of `compare` choose on.
        fit_tokens: training tokens that stand-ins are fitted on before they train.
    """

    RETIRED: ClassVar[dict[str, Any]] = {"static_blend": False, "static_depth": None}

    steps: int = 10_000
    learning_rate: float = 2e-3
    rate_width: int = 0
    schedule: str = "constant"
    warmup: float = 0.0
    alpha: float = 8.0
    budget_softness: float = 0.0
    temperature_start: float = 5.0
    temperature_end: float = 1.0
    noise: float = 1.0
    distill: float = 0.0
    start: Literal["random", "keep", "static"] = "random"
    start_margin: float = 1.0
    stand_in_rate: float = 6e-3
    static_tokens: int = 4096
    fit_tokens: int = 32768

    def __post_init__(self) -> None:
        check_choices(self)
        check_shares(self, "warmup", "distill")
        check_counts(self, "steps", "static_tokens", "fit_tokens")


@dataclass(frozen=True)
class LoraStage:
    """How LoRA heals the model while the routers stay frozen (paper).

    Attributes:
        steps: optimizer steps.
        learning_rate: peak rate of AdamW.
        schedule: shape of the rate over the stage.
        warmup: share of the steps that warm up.
        rank: rank of the update matrices.
        alpha: LoRA scale; the update is multiplied by alpha / rank.
        dropout: on the input of the update matrices.
        distill: share of the loss that is KL to the dense model; the rest is the loss on text
            (paper: 0).
        targets: names of the linear layers that get an update; or `query-value-gate`: what the
            family has for Llama's q_proj, v_proj and gate_proj (paper); or `all-linear`: every one
            inside attention and MLP.
    """

    steps: int = 10_000
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    warmup: float = 0.1
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    distill: float = 0.0
    targets: tuple[str, ...] = QUERY_VALUE_GATE

    def __post_init__(self) -> None:
        check_choices(self)
        check_shares(self, "warmup", "dropout", "distill")
        check_counts(self, "steps", "rank")


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
        check_sparsity(self.target_sparsity, "target_sparsity")
        if self.seed >= 2**32:
            raise ConfigError("reading seed", got=str(self.seed), expected="below 4294967296")
        for stage in self.stages:
            if stage not in typing.get_args(Stage):
                raise ConfigError(
                    "reading stages", got=repr(stage), expected="fit, router, lora or joint"
                )
        if len(set(self.stages)) < len(self.stages):
            got = ", ".join(self.stages)
            raise ConfigError("reading stages", got=got, expected="each stage once")
        if not self.stages:
            raise ConfigError(
                "reading stages", got="no stage", expected="fit, router, lora or joint"
            )
        if self.router_stage.start == "static" and "fit" not in self.stages:
            raise ConfigError(
                "reading router_stage.start",
                got="static without stage fit",
                expected="random or keep: the greedy start of version 0.1 is gone",
                todo="put fit in front of the stages, which starts better (docs/results.md)",
            )
        check_counts(self, "batch_size", "accumulation", "log_every", "save_every")
