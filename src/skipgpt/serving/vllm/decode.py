"""Metadata of vLLM's attention kernel for some of the requests of a decode step.

In a step in which each request has one token, leaving out a token leaves out a request. Then the
kernel reads the keys and values of kept requests only, which is most of its work.

Shapes: T tokens of a step, N of them kept.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context


def of_requests(attention: Any, rows: Tensor, tokens: int, dtype: torch.dtype) -> Any:
    """Make the kernel's metadata for the kept requests of a step.

    Args:
        attention: vLLM's attention layer.
        rows: [N], the kept tokens.
        tokens: T.
        dtype: dtype of queries.

    Returns:
        The metadata; None where the step has prompts or the backend is not supported here.
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
