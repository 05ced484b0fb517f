"""Losses of many static removals, each without rerunning the layers before the change.

Removing a module changes nothing in the layers before it. A search tries one removal after another
on top of those already chosen; it keeps, for each batch, the residual stream that enters the
layers. A trial then starts at the layer that it changes:

    layers before       return their input and compute nothing
    the layer itself    reads the kept stream instead
    layers after        run, then the final norm and the head

All of it runs in the model's own forward, so masks, positions and other layer arguments of a family
stay the same. Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from skipgpt.evaluation.perplexity import total_loss
from skipgpt.evaluation.windows import batches
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import Forced, Site

KEPT_BYTES = 2**31
"""Memory limit of kept streams; if not all layers' fit, every second, third, … is kept."""

_Kept = dict[int, tuple[frozenset[Site], Tensor]]
"""By layer: what was removed before it, and the stream [B, T, D] that then enters it."""

_OnStream = Callable[[Any, Tensor], Tensor]
"""Maps a layer and the stream that would enter it to the one that does."""


class SuffixLoss:
    """Nats per token on fixed blocks as a function of what is removed, for searches.

    The streams of the last removals take layers x tokens x D numbers of the model's dtype, on its
    device: 283 MB in float32 at 30 layers, 4,096 tokens and D 576. A trial saves the share of
    layers before its change, on average half over a round.

    Args:
        model: with routers, whose outputs are ignored. Its weights must not change.
        blocks: [N, T] token ids that the loss is measured on.
        batch_size: blocks per forward.
        most_bytes: memory limit of kept streams.

    Attributes:
        layers: number of layers of the model.

    Example:
        loss = SuffixLoss(model, blocks)
        loss([Site(3, "attn")]) - loss([])
    """

    def __init__(
        self, model: nn.Module, blocks: Tensor, *, batch_size: int = 8, most_bytes: int = KEPT_BYTES
    ) -> None:
        self._model, self._batch_size = model, batch_size
        self._batches = list(batches(blocks, batch_size))
        self._most_bytes, self._tokens = most_bytes, blocks.numel()
        self._kept: list[_Kept] = [{} for _ in self._batches]
        self.layers = len(routed_layers(model))

    def __call__(self, removed: Sequence[Site]) -> float:
        """Return nats per token with some sites removed for every token.

        The last site is the trial. Streams up to its layer are kept, for trials that differ there
        or later.
        """
        tried = removed[-1].layer if removed else self.layers - 1
        nll, tokens = 0.0, 0
        forced = use_rule(self._model, Forced.without([*removed]))
        with forced, execution(self._model, "sparse"):
            for batch, kept in zip(self._batches, self._kept, strict=True):
                with self._resumed(kept, removed, tried):
                    found = total_loss(self._model, batch, self._batch_size)
                nll, tokens = nll + found[0], tokens + found[1]
        return nll / tokens

    @contextmanager
    def _resumed(self, kept: _Kept, removed: Sequence[Site], tried: int) -> Iterator[None]:
        """Let a forward of this batch start at the last layer whose stream is known."""
        in_front = [frozenset(s for s in removed if s.layer < n) for n in range(self.layers)]
        known = [n for n, (sites, _) in kept.items() if n <= tried and sites == in_front[n]]
        start = max(known, default=0)
        layers: list[Any] = [*routed_layers(self._model)]

        def keep(layer: Any, stream: Tensor) -> Tensor:
            if layer.index % self._stride(stream) == 0:
                kept[layer.index] = in_front[layer.index], stream
            return stream

        entering: dict[int, _OnStream] = dict.fromkeys(range(start + 1, tried + 1), keep)
        if start:
            entering[start] = lambda _, __: kept[start][1]
        handles = [_hook(layers[index], change) for index, change in entering.items()]
        try:
            with _passing_on(layers[:start]):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _stride(self, stream: Tensor) -> int:
        """Return n, where every n-th layer's stream is kept."""
        each = self._tokens * stream.shape[-1] * stream.element_size()
        return max(1, math.ceil(self.layers * each / self._most_bytes))


def _hook(layer: Any, change: _OnStream) -> Any:
    """Replace the stream [B, T, D] that enters a layer by `change` of it."""

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(layer, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(layer, kwargs["hidden_states"])}

    return layer.register_forward_pre_hook(read, with_kwargs=True)


@contextmanager
def _passing_on(layers: Sequence[Any]) -> Iterator[None]:
    """Let layers return the stream that enters them, inside the block."""
    before = [layer.__dict__.get("forward") for layer in layers]  # an offloaded layer has its own

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, None) if layers[0].family.returns_tuple else hidden_states

    try:
        for layer in layers:
            layer.forward = forward
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own
