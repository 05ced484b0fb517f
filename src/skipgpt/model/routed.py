"""The attributes of a routed layer; how it runs is in `layer.py`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from skipgpt.model.families.family import Family
from skipgpt.model.packing_cost import PackingCost
from skipgpt.model.state import RoutingState
from skipgpt.routing.router import Router
from skipgpt.routing.stand_in import StandIn


class RoutedLayer(nn.Module):
    """A family's decoder layer with routers.

    Attributes:
        positional: the names of the arguments that the family's layer takes by position.
        index: which layer of the model it is.
        family: the family's table row.
        routing: the routing state, shared by all layers of a model.
        attn_arguments: what the attention module takes by name; None where it takes any.
        attn_blanks: zero projections in place of projections that are not run.
        packing: what packing saves in this layer.
        attn_router: decides which tokens run attention.
        mlp_router: decides which tokens run the MLP.
        attn_stand_in: runs for tokens that skip attention, if there is one.
        mlp_stand_in: likewise for the MLP.
    """

    positional: tuple[str, ...]
    index: int
    family: Family
    routing: RoutingState
    attn_arguments: frozenset[str] | None
    attn_blanks: dict[str, Callable[[Tensor], Tensor]]
    packing: PackingCost
    attn_router: Router
    mlp_router: Router
    attn_stand_in: StandIn | None
    mlp_stand_in: StandIn | None
