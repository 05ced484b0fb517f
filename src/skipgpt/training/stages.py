"""What each stage trains, and the rule and execution that its forwards use.

stage    trains          execution   decisions
router   routers         gated       the estimator's, with gradient
lora     LoRA            sparse      deterministic, at the calibrated threshold
joint    both            gated       the estimator's, with gradient
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from skipgpt.config import LoraStage, Stage, TrainConfig
from skipgpt.model.surgery import train_only
from skipgpt.model.trace import Execution

TRAINS: dict[Stage, tuple[str, ...]] = {
    "router": ("router",),
    "lora": ("lora",),
    "joint": ("router", "lora"),
}


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run.

    Attributes:
        stage: its name.
        steps: optimizer steps.
        schedule: shape of the learning rate.
        warmup: share of the steps that warm up.
        execution: of the training forwards.
    """

    stage: Stage
    steps: int
    schedule: str
    warmup: float
    execution: Execution

    @property
    def trains_routers(self) -> bool:
        """Whether this stage has a budget to keep."""
        return self.stage != "lora"


def plan(stage: Stage, config: TrainConfig) -> StagePlan:
    """The plan of a stage; `joint` keeps the router stage's length and schedule."""
    source = config.lora_stage if stage == "lora" else config.router_stage
    kind: Execution = "sparse" if stage == "lora" else "gated"
    return StagePlan(stage, source.steps, source.schedule, source.warmup, kind)


def prepare(model: Any, stage: Stage, config: TrainConfig) -> Any:
    """Give the model what the stage trains and freeze all else; returns the model to train."""
    if stage != "router":
        model = with_lora(model, config.lora_stage)
    train_only(model, *TRAINS[stage])
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def with_lora(model: Any, stage: LoraStage) -> Any:
    """The model with a LoRA adapter through PEFT; unchanged if it has one."""
    if hasattr(model, "peft_config"):
        return model
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules=list(stage.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)


def optimizer_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups of what trains, each with its stage's rate; biases do not decay."""
    rates = {
        "router": config.router_stage.learning_rate,
        "lora": config.lora_stage.learning_rate,
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "lora" if "lora_" in name else "router"
            groups.setdefault((kind, name.endswith("bias")), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[kind],
            "weight_decay": 0.0 if is_bias else config.weight_decay,
        }
        for (kind, is_bias), parameters in groups.items()
    ]
