"""Execution `gated`, the definition: every token runs, outputs are multiplied by the gate.

The gate multiplies the result of the last operation before the residual add. In families with a
norm there, a gate before the norm would have no effect: norms remove the scale of their input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skipgpt.model import modules
from skipgpt.model.attention import skip_kv
from skipgpt.model.packing import all_columns
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import Module, ModuleDecision
from skipgpt.routing.stand_in import StandIn


def module(
    layer: RoutedLayer,
    which: Module,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor:
    """Stream [B, T, D] plus a module's update of `entering` [B, T, D] times gate (paper)."""
    if which == "attn" and layer.routing.config.kv == "skip":
        read, columns = modules.pre_norm(layer, which, entering), all_columns(decision.keep)
        tokens = stream.shape[1]
        update = skip_kv.attend(layer, read, columns, decision.keep, tokens, arguments)
        update = modules.post_norm(layer, which, update)
    else:
        update = modules.run_module(layer, which, entering, arguments)
    return stream + update * decision.gate.unsqueeze(-1).to(update.dtype)


def stand_in(module: StandIn, stream: Tensor, entering: Tensor, decision: ModuleDecision) -> Tensor:
    """Stream [B, T, D] plus the stand-in's output for `entering` [B, T, D] times 1 - gate."""
    update: Tensor = module(entering)
    return stream + update * (1 - decision.gate).unsqueeze(-1).to(update.dtype)
