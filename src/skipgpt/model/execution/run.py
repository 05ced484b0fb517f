"""Runs a module of a routed layer by its plan: the module for kept tokens, its stand-in for others.

Prefill, training and decode steps all come here; they differ in how they decide. Shapes: B batch,
T query tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skipgpt.model.execution import gated, sparse
from skipgpt.model.execution.plan import Plan
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import Module, ModuleDecision


def run(
    layer: RoutedLayer,
    module: Module,
    chosen: Plan,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor:
    """The residual stream [B, T, D] after a module.

    Args:
        layer: with the module.
        module: which of them.
        chosen: how it runs.
        stream: [B, T, D], what its output is added to.
        entering: [B, T, D], what its norm reads.
        decision: which tokens run it; not read where none do, nor, without gradients, where all do.
        arguments: of attention, by name; its cache is updated whatever runs.
    """
    stand_in = layer.attn_stand_in if module == "attn" else layer.mlp_stand_in
    if chosen is Plan.GATED:
        stream = gated.module(layer, module, stream, entering, decision, arguments)
        return gated.stand_in(stand_in, stream, entering, decision) if stand_in else stream
    after = sparse.module(layer, module, chosen, stream, entering, decision.keep, arguments)
    if stand_in is None or (chosen is Plan.WHOLE and not torch.is_grad_enabled()):
        return after
    if chosen is Plan.NOTHING:
        update: Tensor = stand_in(entering)
        return after + update
    return sparse.stand_in(stand_in, after, entering, decision.keep, owned=after is not stream)
