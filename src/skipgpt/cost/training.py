"""The FLOPs of one training step, by stage.

A product with a frozen weight is computed twice: forwards, and backwards for the gradient of its
input. One whose two factors have gradients is computed three times: forwards, and once for each:

    what                      stage lora      stages router and joint
    projections, head         2 x kept        2 x all tokens
    scores, weighted values   3 x kept        3 x all tokens
    routers                   1 x             3 x
    stand-ins                 3 x skipped     3 x all tokens
    LoRA                      3 x kept        3 x all tokens

Gradients that would reach the embeddings are counted though they are not needed: at most those of
what the first layer's attention reads. What a kernel recomputes backwards is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from skipgpt.config import Stage
from skipgpt.cost.counts import deciding_parameters, parameters_of
from skipgpt.cost.forward import Forward, work
from skipgpt.model.surgery import routed_layers, stand_ins
from skipgpt.routing.decision import Site


def training_flops(
    model: nn.Module,
    forward: Forward,
    stage: Stage | None,
    keep: Mapping[Site, float] | None = None,
    lora: float = 0.0,
) -> float:
    """FLOPs of one forward and backward.

    Args:
        model: with routers; may be on the meta device.
        forward: its size; `logits` counts every labelled token.
        stage: what trains; None is the dense base with LoRA, without routers.
        keep: share of tokens that each site runs in stage `lora`; the other stages run all.
        lora: FLOPs of a forward through LoRA, as `lora_flops` counts them.

    Example:
        forward = Forward(tokens=512, logits=512)
        dense = training_flops(model, forward, None)
        run = training_flops(model, forward, "lora", dict.fromkeys(routers(model), 0.6))
    """
    skips = stage == "lora" and keep is not None
    done = work(model, forward, keep if skips else None)
    total = 2 * (done.linear + done.head) + 3 * done.core + 3 * lora
    if stage is None:
        return total
    deciding = 2.0 * forward.rows * deciding_parameters(model)
    if skips:
        return total + deciding + 3 * (done.routing - deciding)
    standing_in = sum(map(parameters_of, stand_ins(model).values()))
    times = 1 if stage == "lora" else 3
    return total + times * deciding + 3 * 2.0 * forward.rows * standing_in


def lora_flops(
    model: nn.Module, forward: Forward, keep: Mapping[Site, float] | None = None
) -> float:
    """FLOPs of one forward through LoRA, at the share of tokens that each site keeps, or of all."""
    if keep is None:
        return 2.0 * forward.rows * _lora_parameters(model)
    used = 0.0
    for layer in routed_layers(model):
        family = layer.family
        attn, mlp = getattr(layer, family.attn), getattr(layer, family.mlp)
        kept = [getattr(attn, name, None) for name in (*family.query, family.output)]
        packed = sum(_lora_parameters(each) for each in kept if each is not None)
        share = keep[Site(layer.index, "attn")]
        keys = share if layer.routing.config.kv == "skip" else 1.0
        used += share * packed + keys * (_lora_parameters(attn) - packed)
        used += keep[Site(layer.index, "mlp")] * _lora_parameters(mlp)
    return 2.0 * forward.rows * used


def _lora_parameters(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if "lora_" in name)
