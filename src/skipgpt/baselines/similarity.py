"""How far each unit turns the residual stream: the cosine of what enters and what leaves it.

Measured by hooks in dense execution, on the stream itself: past the norm that some families have
behind a module, and past their scale. Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from skipgpt.baselines.search import OnStep
from skipgpt.baselines.units import Unit
from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model import parts
from skipgpt.model.layer import RoutedLayer
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import execution
from skipgpt.routing.decision import Module, Site


def similarities(
    model: nn.Module, blocks: Tensor, *, batch_size: int = 8, on_step: OnStep | None = None
) -> dict[Unit, float]:
    """Mean cosine over all tokens, of every module and of every layer.

    What enters an MLP is the stream behind attention; in parallel families, where both modules
    read what enters the layer, it is that.

    Args:
        model: with routers; what they say does not matter.
        blocks: [N, T] token ids.
        batch_size: blocks a forward.
        on_step: called with batches done and batches in all.
    """
    watches = [_Watch(layer) for layer in routed_layers(model)]
    batches = math.ceil(len(blocks) / batch_size)
    with _hooked(watches), execution(model, "dense"):
        for n in range(batches):
            total_loss(model, blocks[n * batch_size : (n + 1) * batch_size], batch_size)
            if on_step:
                on_step(n + 1, batches)
    return {
        unit: float(total) / blocks.numel()
        for watch in watches
        for unit, total in watch.totals.items()
    }


class _Watch:
    """What is seen of one layer while its forward runs.

    Attributes:
        layer: the routed layer.
        totals: by unit, the sum of all tokens' cosines.
    """

    def __init__(self, layer: RoutedLayer) -> None:
        self.layer = layer
        self.totals: dict[Unit, Tensor] = {}

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.entering: Tensor = args[0] if args else kwargs["hidden_states"]

    def attended(self, _: nn.Module, args: Any, output: Any) -> None:
        self.between = self._after("attn", self.entering, output)

    def fed(self, _: nn.Module, args: Any, output: Any) -> None:
        # At once: Falcon adds attention's output to this tensor in place.
        is_parallel = self.layer.family.is_parallel(self.layer)
        self._after("mlp", self.entering if is_parallel else self.between, output)

    def leave(self, _: nn.Module, args: Any, output: Any) -> None:
        index = self.layer.index
        self._count((Site(index, "attn"), Site(index, "mlp")), self.entering, _first(output))
        del self.entering, self.between

    def _after(self, module: Module, read: Tensor, output: Any) -> Tensor:
        """The stream [B, T, D] with the module's output added; counts what that turned."""
        update = _first(output)
        if not self.layer.family.adds_residual:
            update = read + parts.added(self.layer, module, update)
        self._count((Site(self.layer.index, module),), read, update)
        return update

    def _count(self, unit: Unit, before: Tensor, after: Tensor) -> None:
        total = cosine_similarity(before.float(), after.float(), dim=-1).sum()
        self.totals[unit] = self.totals[unit] + total if unit in self.totals else total


@contextmanager
def _hooked(watches: list[_Watch]) -> Iterator[None]:
    handles = []
    for watch in watches:
        layer, family = watch.layer, watch.layer.family
        handles += [
            layer.register_forward_pre_hook(watch.enter, with_kwargs=True),
            getattr(layer, family.attn).register_forward_hook(watch.attended),
            getattr(layer, family.mlp).register_forward_hook(watch.fed),
            layer.register_forward_hook(watch.leave),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
