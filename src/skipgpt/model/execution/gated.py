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
from skipgpt.routing.decision import ModuleDecision
from skipgpt.routing.stand_in import StandIn


def attention(
    layer: RoutedLayer,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    arguments: dict[str, Any],
) -> Tensor:
    """Stream [B, T, D] plus attention of `entering` [B, T, D] times gate (paper)."""
    read = modules.pre_norm(layer, "attn", entering)
    if layer.routing.config.kv == "skip":
        columns, tokens = all_columns(decision.keep), stream.shape[1]
        update = skip_kv.attend(layer, read, columns, decision.keep, tokens, arguments)
    else:
        update = modules.run_attention(layer, read, arguments)
    return _add_gated(stream, modules.post_norm(layer, "attn", update), decision)


def mlp(
    layer: RoutedLayer,
    stream: Tensor,
    entering: Tensor,
    decision: ModuleDecision,
    _: dict[str, Any],
) -> Tensor:
    """Stream [B, T, D] plus MLP of `entering` [B, T, D] times gate (paper)."""
    update = modules.run_mlp(layer, modules.pre_norm(layer, "mlp", entering))
    return _add_gated(stream, modules.post_norm(layer, "mlp", update), decision)


def stand_in(module: StandIn, stream: Tensor, entering: Tensor, decision: ModuleDecision) -> Tensor:
    """Stream [B, T, D] plus the stand-in's output for `entering` [B, T, D] times 1 - gate."""
    update: Tensor = module(entering)
    return stream + update * (1 - decision.gate).unsqueeze(-1).to(update.dtype)


def _add_gated(stream: Tensor, update: Tensor, decision: ModuleDecision) -> Tensor:
    return stream + update * decision.gate.unsqueeze(-1).to(update.dtype)
