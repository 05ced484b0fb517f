"""The routed layer. Read this file first: the whole idea, in the order the data moves.

    hidden ──▶ routers ──▶ decision                 which tokens run attention, which the MLP
       │                     │
       ├──▶ attention, kept tokens ──▶ + ──▶ hidden     skipped tokens pass on the residual
       └──▶ MLP, kept tokens ──────▶ + ──▶ hidden

A routed layer is the family's own decoder layer, re-classed in place: same parameters, same
names, same call. Shapes: B batch, T query tokens, S cached tokens, D hidden, N packed tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skipgpt.model import gated, sparse
from skipgpt.model.families import Family
from skipgpt.model.trace import RoutingState, Step
from skipgpt.routing.decision import Decision, Site
from skipgpt.routing.router import Router, margins, router_input

TWINS = {"gated": gated, "sparse": sparse}
"""Two executions of one signature; they agree in values and gradients."""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """What the model passes to a layer beside the hidden states, as transformers names it.

    Attributes:
        attention_mask: [B, 1, T, S] bool (True attends) or float (added to scores), or None for
            plain causal attention.
        position_embeddings: cosine and sine of the rotary embedding, [B or 1, T, head size] each.
        past_key_values: the cache to update, or None.
        extras: everything else, for the attention function.
    """

    attention_mask: Tensor | None
    position_embeddings: tuple[Tensor, Tensor]
    past_key_values: Any
    extras: dict[str, Any]


class RoutedLayer(nn.Module):
    """Mixed in front of a family's decoder layer; `routed_class` makes the combination."""

    index: int
    family: Family
    routing: RoutingState
    attn_router: Router
    mlp_router: Router
    self_attn: Any
    mlp: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Any = None,
        **extras: Any,
    ) -> Tensor:
        """The family's layer, except that each token runs only the modules it keeps.

        Args:
            hidden_states: [B, T, D], the residual stream.
            attention_mask: see `LayerCall`.
            position_embeddings: see `LayerCall`.
            past_key_values: see `LayerCall`.
            **extras: whatever else transformers passes.

        Returns:
            The residual stream after this layer, [B, T, D].
        """
        if self.routing.execution == "dense":
            dense: Tensor = super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **extras,
            )
            return dense
        assert position_embeddings is not None
        call = LayerCall(attention_mask, position_embeddings, past_key_values, extras)
        twin = TWINS[self.routing.execution]
        rule, config = self.routing.rule, self.routing.config
        at_attn, at_mlp = Site(self.index, "attn"), Site(self.index, "mlp")

        if config.input == "layer_input":
            read = router_input(hidden_states, config)
            attn_margin, mlp_margin = margins(self.attn_router, self.mlp_router, read)
            decision = Decision(rule(attn_margin, at_attn), rule(mlp_margin, at_mlp))
            hidden_states = twin.attention(self, hidden_states, decision.attn, call)
        else:
            attn = rule(self.attn_router.margin(router_input(hidden_states, config)), at_attn)
            hidden_states = twin.attention(self, hidden_states, attn, call)
            mlp = rule(self.mlp_router.margin(router_input(hidden_states, config)), at_mlp)
            decision = Decision(attn, mlp)
        hidden_states = twin.mlp(self, hidden_states, decision.mlp)

        self._record(decision)
        return hidden_states

    def _record(self, decision: Decision) -> None:
        """Hand the decision to the open trace, if any; the first layer opens a new step."""
        trace = self.routing.trace
        if trace is None:
            return
        if not trace.steps or self.index in trace.steps[-1].decisions:
            trace.steps.append(Step({}, self.routing.real))
        trace.steps[-1].decisions[self.index] = decision

    def part(self, name: str | None) -> Any:
        """A child by name; the identity for a norm that the family does not have."""
        return getattr(self, name) if name else nn.Identity()


@functools.cache
def routed_class(layer_class: type[nn.Module]) -> type[RoutedLayer]:
    """`RoutedLlamaDecoderLayer` from `LlamaDecoderLayer`; the same class every time."""
    name = f"Routed{layer_class.__name__}"
    return type(name, (RoutedLayer, layer_class), {"__module__": __name__})
