"""The residual stream before and after each module and layer, captured by hooks.

Execution is dense. The stream is taken after the norm that some families have behind a module, and
after their scale. Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from skipgpt.model import modules
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.state import execution
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import Module, Site

Seen = Callable[[tuple[Site, ...], Tensor, Tensor], None]
"""Called with one site, or both of a layer, and the stream [B, T, D] before and after."""


@contextmanager
def watching_stream(model: nn.Module, seen: Seen) -> Iterator[None]:
    """Run the model dense inside the block; report the stream around each module and layer.

    What enters an MLP is the stream after attention; in parallel families, where both modules read
    what enters the layer, it is the stream before the layer. Reports come in the order the data
    moves: attention, MLP, then their layer.
    """
    handles = []
    for layer in routed_layers(model):
        watch, family = _Watch(layer, seen), layer.family
        handles += [
            layer.register_forward_pre_hook(watch.enter, with_kwargs=True),
            getattr(layer, family.attn).register_forward_hook(watch.attended),
            getattr(layer, family.mlp).register_forward_hook(watch.fed),
            layer.register_forward_hook(watch.leave),
        ]
    try:
        with execution(model, "dense"):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """The hooks of one layer, and the stream they captured in the current forward."""

    def __init__(self, layer: RoutedLayer, seen: Seen) -> None:
        self.layer, self.seen = layer, seen

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.entering: Tensor = args[0] if args else kwargs["hidden_states"]

    def attended(self, _: nn.Module, args: Any, output: Any) -> None:
        self.between = self._after("attn", self.entering, output)

    def fed(self, _: nn.Module, args: Any, output: Any) -> None:
        # Read at once: Falcon adds attention's output to this tensor in place.
        is_parallel = self.layer.family.is_parallel(self.layer)
        self._after("mlp", self.entering if is_parallel else self.between, output)

    def leave(self, _: nn.Module, args: Any, output: Any) -> None:
        index = self.layer.index
        self.seen(
            (Site(index, "attn"), Site(index, "mlp")), self.entering, modules.first_of(output)
        )
        del self.entering, self.between

    def _after(self, module: Module, read: Tensor, output: Any) -> Tensor:
        """The stream [B, T, D] with the module's output added."""
        update = modules.first_of(output)
        if not self.layer.family.adds_residual:
            update = read + modules.post_norm(self.layer, module, update)
        self.seen((Site(self.layer.index, module),), read, update)
        return update
