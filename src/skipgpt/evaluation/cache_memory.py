"""Memory of keys and values, measured on a filled cache."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipgpt.model.caches.policy import cache_bytes, dense_cache_bytes
from skipgpt.model.state import count_routing


@dataclass(frozen=True)
class CacheMemory:
    """The cache after a prefill.

    Attributes:
        tokens: tokens prefilled, over all rows.
        bytes: size of the cache, preallocated space included.
        dense_bytes: its size if no token had skipped attention.
        saved: share of the dense bytes that is not needed.
        attn: attention sparsity of the same prefill, which `kv="skip"` saves and `dense` does not.
    """

    tokens: int
    bytes: int
    dense_bytes: int
    saved: float
    attn: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"cache {self.bytes / self.tokens:,.0f} bytes per token, {self.saved:.1%} less than "
            f"dense ({self.attn:.1%} of attention skipped)"
        )


@torch.no_grad()
def cache_memory(model: Any, ids: Tensor) -> CacheMemory:
    """Prefill a cache with ids [B, T] and measure it.

    Example:
        print(cache_memory(model, blocks[:1]).saved)
    """
    with count_routing(model) as counts:
        output = model(ids.to(next(model.parameters()).device), use_cache=True)
    held, dense = cache_bytes(output.past_key_values), dense_cache_bytes(output.past_key_values)
    attn = counts.sparsity("attn")
    return CacheMemory(ids.numel(), held, dense, 1 - held / max(1, dense), attn)
