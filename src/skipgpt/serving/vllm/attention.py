"""Attention in vLLM with queries for some tokens, keys and values for all.

vLLM fuses the projections of queries, keys and values. Here queries have one of their own, which
reads kept tokens only. The paged cache stays as it is: each token writes its keys and values.

The attention kernel is called with a query for every token of the step, zeros where a token skips.
Its metadata say which queries belong to which request and place the last one at the end of the
request's keys, so a subset of a prompt's queries cannot be described to it. The kernel is a small
part of the work until a context is several times as long as the model is wide.

Shapes: T tokens of a step, N of them kept, D hidden.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear


class SplitAttention(nn.Module):
    """A family's attention, with queries apart from keys and values.

    Args:
        dense: vLLM's attention module, whose parts are taken.
        vllm_config: of the engine.
        prefix: the module's name.
    """

    def __init__(self, dense: Any, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        hidden, size = dense.hidden_size, dense.head_dim
        heads, pairs = dense.total_num_heads, dense.total_num_kv_heads
        bias = dense.qkv_proj.bias is not None
        self.head_dim, self.q_size, self.kv_size = size, dense.q_size, dense.kv_size
        self.q_proj = ColumnParallelLinear(
            hidden, heads * size, bias=bias, prefix=f"{prefix}.q_proj"
        )
        self.kv_proj = QKVParallelLinear(
            hidden, size, 0, pairs, bias=bias, prefix=f"{prefix}.kv_proj"
        )
        self.o_proj, self.attn = dense.o_proj, dense.attn
        self.rotary_emb = dense.rotary_emb
        self.q_norm, self.k_norm = getattr(dense, "q_norm", None), getattr(dense, "k_norm", None)
        # A connector that hands the cache on does so in the attention call.
        self.may_only_write = (
            vllm_config.kv_transfer_config is None
            and not self.attn.attn_backend.forward_includes_kv_cache_update
        )

    def forward(self, positions: Tensor, read: Tensor, rows: Tensor | None) -> Tensor | None:
        """The update of kept tokens; keys and values of all tokens go into the cache.

        Args:
            positions: [T].
            read: [T, D], the normed stream.
            rows: [N], the kept tokens; None for all.

        Returns:
            [N, D], or None where no token is kept.
        """
        pair, _ = self.kv_proj(read)
        keys, values = pair.split([self.kv_size, self.kv_size], dim=-1)
        keys = self._turned(positions, keys, self.k_norm)
        if rows is not None and len(rows) == 0 and self.may_only_write:
            self._write(keys, values)
            return None
        mixed = self.attn(self._queries(positions, read, rows), keys, values)
        if rows is not None:
            mixed = mixed.index_select(0, rows)
        if len(mixed) == 0:
            return None
        update: Tensor = self.o_proj(mixed)[0]
        return update

    def _queries(self, positions: Tensor, read: Tensor, rows: Tensor | None) -> Tensor:
        """Queries [T, heads x size], zeros where a token is not kept."""
        if rows is None:
            return self._turned(positions, self.q_proj(read)[0], self.q_norm)
        queries = read.new_zeros(len(read), self.q_size)
        if len(rows):
            kept, _ = self.q_proj(read.index_select(0, rows))
            kept = self._turned(positions.index_select(0, rows), kept, self.q_norm)
            queries.index_copy_(0, rows, kept)
        return queries

    def _turned(self, positions: Tensor, heads: Tensor, norm: Any) -> Tensor:
        """Queries or keys after the family's norm of each head and the rotary embedding."""
        if norm is not None:
            heads = norm(heads.reshape(len(heads), -1, self.head_dim)).view(heads.shape)
        turned: Tensor = self.rotary_emb(positions, heads, None)[0]
        return turned

    def _write(self, keys: Tensor, values: Tensor) -> None:
        """Keys and values into the cache, without attention."""
        shape = (len(keys), -1, self.head_dim)
        unified_kv_cache_update(keys.view(shape), values.view(shape), self.attn.layer_name)
