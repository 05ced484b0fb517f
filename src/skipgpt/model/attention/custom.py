"""A custom attention function for packed queries, in place of sdpa.

A family's attention looks its function up by the name in its config and passes the mask on unread.
So packed queries come with an object as the mask that holds their positions and attends, and with
a config that names the function which calls it. `Patched` replaces attributes of a module, a config
or a cache.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skipgpt.model.families.family import has
from skipgpt.model.routed import RoutedLayer

NAME = "skipgpt_packed"
"""The name under which `attend` is registered."""


class PackedQueries:
    """Base class of the objects that are passed as the attention mask."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        """Attention [B, N, H, size] of queries [B, H, N, size] to keys [B, heads, S, size]."""
        raise NotImplementedError


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedQueries,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attend as the packed queries say; a custom attention function of transformers."""
    return attention_mask.attend(query, key, value, **given), None


class Patched:
    """Proxy of an object with some attributes replaced."""

    def __init__(self, original: Any, **replaced: Any) -> None:
        self.__dict__.update(_original=original, **replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def can_use(layer: RoutedLayer) -> bool:
    """Whether a layer's attention looks its function up by name, and that is sdpa on a CPU.

    On other devices the host would have to wait for the positions of the queries.
    """
    attn = getattr(layer, layer.family.attn)
    if not has(attn, "config"):
        return False
    asks = "ALL_ATTENTION_FUNCTIONS" in type(attn).forward.__code__.co_names
    weight: Tensor = next(attn.parameters())
    return asks and weight.device.type == "cpu" and attn.config._attn_implementation == "sdpa"
