"""LoRA, through PEFT."""

from __future__ import annotations

from typing import Any

from torch import nn

from skipgpt.config import ALL_LINEAR, LoraStage
from skipgpt.model.linear import has_widths
from skipgpt.model.surgery import routed_layers


def with_lora(model: Any, stage: LoraStage) -> Any:
    """The model with a LoRA adapter through PEFT; unchanged if it has one."""
    if hasattr(model, "peft_config"):
        return model
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules=target_names(model, stage),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)


def target_names(model: nn.Module, stage: LoraStage) -> list[str]:
    """The linear layers that a stage adapts, as PEFT takes them: ends of module names.

    Routers and stand-ins are never among them, nor are experts that share one tensor.
    """
    if stage.targets != ALL_LINEAR:
        return list(stage.targets)
    names = set()
    for layer in routed_layers(model):
        for part in (layer.family.attn, layer.family.mlp):
            names |= {
                f"{part}.{name}"
                for name, module in getattr(layer, part).named_modules()
                if name and has_widths(module) and hasattr(module, "weight")
            }
    return sorted(names)
