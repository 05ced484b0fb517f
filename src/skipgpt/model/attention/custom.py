"""Attention functions of our own for packed queries, in the place of sdpa's.

A family's attention takes its function by the name in its config, and hands the mask to it unseen.
So packed queries come with an object in the mask's place that knows where they are, and with a
config that names the function which reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from skipgpt.model.families.family import has
from skipgpt.model.routed import RoutedLayer


class PackedQueries:
    """Base of what stands in the place of a mask.

    Attributes:
        attention: the name of the function that reads it.
    """

    attention: ClassVar[str]


class PackedConfig:
    """The config of an attention module, except for the attention function that it names."""

    def __init__(self, config: Any, attention: str) -> None:
        self._config, self._attn_implementation = config, attention

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def can_use(layer: RoutedLayer) -> bool:
    """Whether attention of a layer takes its function by name, and that is sdpa on a CPU.

    On other devices where the queries are would have to be waited for.
    """
    attn = getattr(layer, layer.family.attn)
    if not has(attn, "config"):
        return False
    asks = "ALL_ATTENTION_FUNCTIONS" in type(attn).forward.__code__.co_names
    weight: Tensor = next(attn.parameters())
    return asks and weight.device.type == "cpu" and attn.config._attn_implementation == "sdpa"


def register(name: str, function: Callable[..., Any]) -> None:
    """Make a function known to transformers; again and again does no harm."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, function)
