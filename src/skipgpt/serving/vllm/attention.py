"""Attention in vLLM with queries for some tokens, keys and values for all.

vLLM fuses the projections of queries, keys and values. Here queries have their own, which reads
kept tokens only. The paged cache is unchanged: each token writes its keys and values.

In a step with prompts the attention kernel is called with a query for every token, zeros where a
token skips. Its metadata say which queries belong to which request and place the last one at the
end of the request's keys, so a subset of a prompt's queries cannot be described to it. The kernel
is a small part of the work until a context is several times as long as the model is wide. In a step
in which each request has one token, leaving out a token leaves out a request: where the metadata of
the backend are known, the kernel reads keys and values of kept requests only, most of its work.

Shapes: T tokens of a step, N of them kept, D hidden.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear


class SplitAttention(nn.Module):
    """A family's attention, with queries projected apart from keys and values.

    It reuses the parts of `dense`, vLLM's attention module of the name `prefix`.
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
        # A KV connector transfers the cache in the attention call.
        self.may_only_write = (
            vllm_config.kv_transfer_config is None
            and not self.attn.attn_backend.forward_includes_kv_cache_update
        )

    def forward(self, positions: Tensor, read: Tensor, rows: Tensor | None) -> Tensor | None:
        """Return the update [N, D] of kept tokens, and cache keys and values of all tokens.

        `read` [T, D] is the normalised stream, and `rows` [N] are the kept tokens, None for all.
        Returns None where no token is kept.
        """
        pair, _ = self.kv_proj(read)
        keys, values = pair.split([self.kv_size, self.kv_size], dim=-1)
        keys = self._turned(positions, keys, self.k_norm)
        if rows is not None and len(rows) == 0 and self.may_only_write:
            self._write(keys, values)
            return None
        if rows is None:
            mixed = self.attn(self._queries(positions, read), keys, values)
        else:
            mixed = self._attend(positions, read, rows, keys, values)
        if len(mixed) == 0:
            return None
        update: Tensor = self.o_proj(mixed)[0]
        return update

    def _attend(
        self, positions: Tensor, read: Tensor, rows: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Return attention [N, heads x size] of kept tokens, before the output projection."""
        queries = read.new_zeros(len(rows), self.q_size)
        if len(rows):
            taken = positions.index_select(0, rows), read.index_select(0, rows)
            queries = self._queries(*taken)
        if self.may_only_write:
            metadata = _of_requests(self.attn, rows, len(read), read.dtype)
            if metadata is not None:
                self._write(keys, values)
                return self._attend_requests(queries, keys, values, metadata)
        whole = read.new_zeros(len(read), self.q_size).index_copy_(0, rows, queries)
        mixed: Tensor = self.attn(whole, keys, values).index_select(0, rows)
        return mixed

    def _attend_requests(
        self, queries: Tensor, keys: Tensor, values: Tensor, metadata: Any
    ) -> Tensor:
        """Do what `Attention.forward` does, for the requests in the metadata."""
        heads = [self._by_head(each) for each in (queries, keys, values)]
        output = torch.empty_like(heads[0])
        cache = self.attn.kv_cache
        self.attn.impl.forward(self.attn, *heads, cache, metadata, output=output)
        return output.flatten(1)

    def _queries(self, positions: Tensor, read: Tensor) -> Tensor:
        return self._turned(positions, self.q_proj(read)[0], self.q_norm)

    def _turned(self, positions: Tensor, heads: Tensor, norm: Any) -> Tensor:
        """Apply the family's norm per head and the rotary embedding to queries or keys."""
        if norm is not None:
            heads = norm(heads.reshape(len(heads), -1, self.head_dim)).view(heads.shape)
        turned: Tensor = self.rotary_emb(positions, heads, None)[0]
        return turned

    def _write(self, keys: Tensor, values: Tensor) -> None:
        """Write keys and values into the cache, without attention."""
        heads = self._by_head(keys), self._by_head(values)
        unified_kv_cache_update(*heads, self.attn.layer_name)

    def _by_head(self, packed: Tensor) -> Tensor:
        return packed.view(len(packed), -1, self.head_dim)


def _of_requests(attention: Any, rows: Tensor, tokens: int, dtype: torch.dtype) -> Any:
    """Make the kernel's metadata for the kept requests of a step with `tokens` tokens.

    None where the step has prompts or the backend is not supported here.
    """
    metadata = (get_forward_context().attn_metadata or {}).get(attention.layer_name)
    if attention.attn_backend.get_name() != "CPU_ATTN" or metadata is None:
        return None
    if metadata.max_query_len != 1 or metadata.num_actual_tokens != tokens:
        return None
    from vllm import _custom_ops, envs

    starts = torch.arange(len(rows) + 1, dtype=metadata.query_start_loc.dtype)
    lengths = metadata.seq_lens.index_select(0, rows)
    plan = _custom_ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(rows),
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_size,
        seq_lens=lengths,
        dtype=dtype,
        query_start_loc=starts,
        causal=metadata.causal,
        sliding_window_size=attention.impl.sliding_window,
        isa=attention.isa,
        enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        kv_cache_dtype=attention.kv_cache_dtype,
    )
    return dataclasses.replace(
        metadata,
        num_actual_tokens=len(rows),
        query_start_loc=starts,
        seq_lens=lengths,
        block_table=metadata.block_table.index_select(0, rows),
        scheduler_metadata=plan,
    )
