"""What each stage trains, and the rule and execution that its forwards use.

stage    trains                     execution   decisions
router   routers, stand-ins         gated       sampled, with gradient
lora     LoRA, stand-ins            sparse      deterministic, at a threshold that meets the budget
joint    routers, stand-ins, LoRA   gated       sampled, with gradient

Stage lora is gated, too, if processes have to call the same modules and tokens would decide which.
Stage fit trains nothing; see `fit_stage.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from skipgpt.config import Stage, TrainConfig
from skipgpt.model.families.parameter_names import kind_of
from skipgpt.model.lora import with_lora
from skipgpt.model.state import Execution
from skipgpt.model.surgery import hidden_size, routed_layers, train_only
from skipgpt.training.loop.lora_dropout import key_dropout

TRAINS: dict[Stage, tuple[str, ...]] = {
    "router": ("router", "stand_in"),
    "lora": ("lora", "stand_in"),
    "joint": ("router", "stand_in", "lora"),
}


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run.

    Attributes:
        warmup: share of steps for warm-up.
        execution: execution of the training forwards.
        distill: share of the loss that is KL to the dense model; the rest is the loss on text.
    """

    stage: Stage
    steps: int
    schedule: str
    warmup: float
    execution: Execution
    distill: float = 0.0

    @property
    def trains_routers(self) -> bool:
        """Whether this stage trains routers, so that its loss has a budget term."""
        return self.stage != "lora"


def plan(
    stage: Stage, config: TrainConfig, *, processes: int = 1, lockstep: bool = False
) -> StagePlan:
    """Return the plan of a stage; `joint` has the router stage's length and schedule.

    In lockstep, as under ZeRO-3, every process has to call the same modules in order.

    Example:
        >>> plan("lora", TrainConfig(), processes=2).execution
        'sparse'
    """
    source = config.lora_stage if stage == "lora" else config.router_stage
    # With packing, which modules a process calls, and in which order, depends on its tokens.
    same_calls = lockstep or (processes > 1 and config.router.kv == "skip")
    kind: Execution = "sparse" if stage == "lora" and not same_calls else "gated"
    return StagePlan(stage, source.steps, source.schedule, source.warmup, kind, source.distill)


def prepare(model: Any, stage: Stage, config: TrainConfig) -> Any:
    """Add what the stage trains to the model, freeze all else, and return the model to train."""
    if stage != "router":
        model = with_lora(model, config.lora_stage)
        if routed_layers(model):
            key_dropout(model)
    train_only(model, *TRAINS[stage])
    if config.activation_checkpointing:
        # Transformers renamed the method within the range that is supported.
        is_new = hasattr(model, "activation_checkpointing_enable")
        name = "activation_checkpointing_enable" if is_new else "gradient_checkpointing_enable"
        getattr(model, name)({"use_reentrant": False})
    return model


def optimizer_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return parameter groups of what trains, with their learning rates; biases do not decay."""
    rates = {
        "router": config.router_stage.learning_rate,
        "stand_in": config.router_stage.stand_in_rate,
        "lora": config.lora_stage.learning_rate,
    }
    if width := config.router_stage.rate_width:
        rates["router"] = rates["router"] * width / hidden_size(model)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = kind_of(name)
            groups.setdefault((kind, name.endswith("bias")), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[kind],
            "weight_decay": 0.0 if is_bias else config.weight_decay,
        }
        for (kind, is_bias), parameters in groups.items()
    ]
