"""Settings of the stages that `train` runs; `schema.py` has the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from skipgpt.config.checks import check_choices, check_counts, check_shares

ALL_LINEAR = ("all-linear",)
QUERY_VALUE_GATE = ("query-value-gate",)


@dataclass(frozen=True)
class FitStage:
    """How routers and stand-ins are fitted without training (docs/fitting.md).

    Attributes:
        tokens: training tokens that costs are measured on, and values in each round.
        stand_in_tokens: training tokens that stand-ins are fitted on.
        draws: labels drawn per position; each costs one more backward pass.
        batch_size: rows per forward.
        by_token: routers predict the cost per token; else each predicts its module's mean, a static
            choice.
        rounds: how often routers are corrected by what decisions cost under the routes of the
            target; each takes as long as the rest of the fit or longer.
    """

    tokens: int = 32768
    stand_in_tokens: int = 32768
    draws: int = 1
    batch_size: int = 4
    by_token: bool = True
    rounds: int = 1

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
        warmup: share of the steps that warm up; below 1.
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
        stand_in_rate: peak rate of AdamW for stand-ins, in every stage that trains.
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
        check_shares(self, "distill")
        check_shares(self, "warmup", whole=False)  # transformers takes 1 for a number of steps
        check_counts(self, "steps", "static_tokens", "fit_tokens")


@dataclass(frozen=True)
class LoraStage:
    """How LoRA heals the model while the routers stay frozen (paper).

    Attributes:
        steps: optimizer steps.
        learning_rate: peak rate of AdamW.
        schedule: shape of the rate over the stage.
        warmup: share of the steps that warm up; below 1.
        rank: rank of the update matrices.
        alpha: LoRA scale; the update is multiplied by alpha / rank.
        dropout: on the input of the update matrices; below 1.
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
        check_shares(self, "distill")
        check_shares(self, "warmup", "dropout", whole=False)
        check_counts(self, "steps", "rank")
