"""The one call of transformers' `generate`, which commands, servers and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skipgpt.model.loading.generation_settings import Ends, plain_generation


@torch.no_grad()
def continue_ids(
    model: Any, ids: Tensor, ends: Ends, *, max_new_tokens: int, **how: Any
) -> dict[str, Any]:
    """Continue token ids, with none of the base's own generation settings.

    Args:
        model: of transformers, with routers or not.
        ids: [B, T], prompts of one length.
        ends: what ends a text.
        max_new_tokens: the most tokens to generate.
        how: further arguments of `generate`: sampling, a streamer, a cache.

    Returns:
        What `generate` returns: `sequences` [B, T + new tokens], and the cache that was filled.
    """
    with plain_generation(model, ends):
        output: dict[str, Any] = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            **how,
        )
    return output
