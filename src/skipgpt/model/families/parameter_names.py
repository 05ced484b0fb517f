"""Names of the parts that routing adds to a layer, to tell their parameters from the base's."""

from __future__ import annotations

from typing import Literal

Kind = Literal["router", "stand_in", "lora", "base"]

ROUTING_PARTS = ("attn_router", "mlp_router", "attn_stand_in", "mlp_stand_in")


def is_routing(name: str) -> bool:
    """Whether a parameter of this name belongs to a router or a stand-in.

    Example:
        >>> is_routing("model.layers.3.attn_router.weight")
        True
    """
    return any(f"{part}." in name for part in ROUTING_PARTS)


def kind_of(name: str) -> Kind:
    """What a parameter of this name belongs to.

    Example:
        >>> kind_of("model.layers.3.mlp_stand_in.up.weight")
        'stand_in'
    """
    if is_routing(name):
        return "stand_in" if "_stand_in." in name else "router"
    return "lora" if "lora_" in name else "base"
