"""LoRA, through PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from skipgpt.config import ALL_LINEAR, LoraStage
from skipgpt.errors import ConfigError
from skipgpt.model.linear import has_widths
from skipgpt.model.surgery import routed_layers, take_the_dial
from skipgpt.model.trace import routing_state


def with_lora(model: Any, stage: LoraStage) -> Any:
    """The model with a LoRA adapter through PEFT; unchanged if it has one.

    Raises:
        ConfigError: a target is no linear layer of this model.
    """
    if hasattr(model, "peft_config"):
        return model
    check_targets(model, stage)
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules=target_names(model, stage),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, adapter)
    if routed_layers(model):
        routing_state(model).lora = True
        # PEFT calls the forward of the model in it, past its hooks.
        take_the_dial(wrapped, routing_state(model))
    return wrapped


@contextmanager
def without_lora(model: Any) -> Iterator[None]:
    """Switch the LoRA adapter off inside the block; nothing happens where there is none.

    PEFT makes every adapter trainable when it switches it on again; here each parameter stays as
    trainable as it was.

    Example:
        with without_lora(model), skipgpt.execution(model, "dense"):
            base_logits = model(ids).logits
    """
    if not hasattr(model, "disable_adapter"):
        yield
        return
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def check_targets(model: nn.Module, stage: LoraStage) -> None:
    """Refuse names that no linear layer has before hours of training, not after.

    Raises:
        ConfigError: there is one.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    unknown = [target for target in stage.targets if target not in names]
    if stage.targets != ALL_LINEAR and unknown:
        raise ConfigError(
            "planning stage lora",
            got=f"targets that the model does not have: {', '.join(unknown)}",
            expected="names of linear layers, such as q_proj or down_proj, or all-linear",
            todo="set them with --set lora_stage.targets=q_proj,v_proj",
        )


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
