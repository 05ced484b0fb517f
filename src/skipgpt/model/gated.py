"""Execution `gated`: every token runs, outputs are multiplied by the gate. The definition.

The gate multiplies the last operation before the residual add. In families with a norm there,
gating in front of it would be undone: a norm is blind to the scale of its input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from skipgpt.routing.decision import ModuleDecision

if TYPE_CHECKING:
    from skipgpt.model.layer import LayerCall, RoutedLayer


def attention(
    layer: RoutedLayer, hidden: Tensor, decision: ModuleDecision, call: LayerCall
) -> Tensor:
    """Residual stream [B, T, D] after attention times gate (paper)."""
    update, _ = layer.self_attn(
        hidden_states=layer.part(layer.family.attn_norm)(hidden),
        attention_mask=call.attention_mask,
        position_embeddings=call.position_embeddings,
        past_key_values=call.past_key_values,
        **call.extras,
    )
    return _add_gated(hidden, layer.part(layer.family.attn_post_norm)(update), decision)


def mlp(layer: RoutedLayer, hidden: Tensor, decision: ModuleDecision) -> Tensor:
    """Residual stream [B, T, D] after MLP times gate (paper)."""
    update = layer.mlp(layer.part(layer.family.mlp_norm)(hidden))
    return _add_gated(hidden, layer.part(layer.family.mlp_post_norm)(update), decision)


def _add_gated(hidden: Tensor, update: Tensor, decision: ModuleDecision) -> Tensor:
    return hidden + update * decision.gate.unsqueeze(-1).to(update.dtype)
