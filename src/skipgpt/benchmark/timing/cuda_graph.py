"""Decoding captured as a CUDA graph: the host launches a step as a whole, not each of its kernels.

A step of one token is so short that launching its kernels takes longer than running them. The graph
is replayed on a static cache, with routes decided anew on the device, so the step must not
synchronise with the host.

Shapes: B batch, T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skipgpt.model.execution.plan import needs_host_sync
from skipgpt.model.surgery import routed_layers

_WARMUP = 3
"""Steps before the capture, for lazy initialisation."""


class StaticDecode:
    """Greedy decoding of one token at a time, from a prompt, in tensors at fixed addresses.

    The prompt [B, T] is prefilled here, once, under the current rule. A dense or a routed model
    then makes at most `new_tokens` steps.

    Attributes:
        token: [B, 1], the last decoded token.
    """

    def __init__(self, model: Any, ids: Tensor, new_tokens: int) -> None:
        from transformers import StaticCache

        self._model, self._prompt = model, ids.shape[1]
        self._cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + new_tokens)
        output = model(input_ids=ids, past_key_values=self._cache, logits_to_keep=1)
        self._first = output.logits[:, -1:].argmax(-1)
        self.token = self._first.clone()

    def reset(self) -> None:
        """Go back to the end of the prompt."""
        for layer in self._cache.layers:
            # Later entries are masked, and overwritten by the next steps.
            layer.cumulative_length.fill_(self._prompt)
        self.token.copy_(self._first)

    def step(self) -> None:
        """Decode one token."""
        output = self._model(input_ids=self.token, past_key_values=self._cache)
        self.token.copy_(output.logits[:, -1:].argmax(-1))


def captured(decode: StaticDecode) -> Callable[[], None]:
    """Capture a decode step as a CUDA graph; calling the result replays it."""
    aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARMUP):
            decode.reset()
            decode.step()
    torch.cuda.current_stream().wait_stream(aside)
    decode.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode.step()
    return graph.replay


def can_capture(model: Any) -> bool:
    """Return whether one-token steps of a model can be captured, in every execution.

    That takes a GPU, a family whose steps transformers can capture, and kernels for every routed
    layer.
    """
    if model.device.type != "cuda" or not getattr(model, "_can_compile_fullgraph", False):
        return False
    return not any(needs_host_sync(layer) for layer in routed_layers(model))
