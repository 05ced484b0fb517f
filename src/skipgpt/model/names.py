"""The names of what routing adds to a layer, by which its parameters are told from the base's."""

from __future__ import annotations

ROUTING_PARTS = ("attn_router", "mlp_router", "attn_stand_in", "mlp_stand_in")


def is_routing(name: str) -> bool:
    """Whether a parameter of this name belongs to a router or a stand-in.

    Example:
        >>> is_routing("model.layers.3.attn_router.weight")
        True
    """
    return any(f"{part}." in name for part in ROUTING_PARTS)
