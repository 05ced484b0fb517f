"""Stand-ins of least squares: what each module adds, as far as a low-rank map predicts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.model import parts
from skipgpt.model.surgery import routed_layers
from skipgpt.model.trace import MODULES, deciding, execution
from skipgpt.routing.decision import KEEP_ALL, Site
from skipgpt.routing.stand_in_fit import Moments, fit

OnStep = Callable[[int, int], None]
"""Called with steps done and steps in all."""

SUMS_BYTES = 2**31
"""What the sums that stand-ins are fitted from may take up at once."""


@torch.no_grad()
def fit_stand_ins(
    model: nn.Module, text: Tensor, batch_size: int = 8, on_step: OnStep | None = None
) -> None:
    """Fit every stand-in to what its module adds in the dense model.

    Args:
        model: with stand-ins, in place.
        text: [N, T] token ids.
        batch_size: rows per forward.
        on_step: called with batches done and batches in all.

    Example:
        fit_stand_ins(model, blocks.train[:128])
    """
    layers: list[Any] = [*routed_layers(model)]
    width = layers[0].attn_stand_in.up.out_features
    # Sums of two modules a layer; as many layers a pass over the text as fit.
    at_once = max(1, SUMS_BYTES // (2 * Moments.bytes_at(width)))
    batches, done = text.split(batch_size), 0  # type: ignore[no-untyped-call]
    total = len(batches) * -(-len(layers) // at_once)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for first in range(0, len(layers), at_once):
        some, moments = layers[first : first + at_once], dict[Site, Moments]()
        with _watched(some, moments), execution(model, "gated"), deciding(model, KEEP_ALL):
            for rows in batches:
                model(input_ids=rows.to(device), use_cache=False, logits_to_keep=1)
                done += 1
                if on_step:
                    on_step(done, total)
        for layer in some:
            for module in MODULES:
                fit(getattr(layer, f"{module}_stand_in"), moments[Site(layer.index, module)])
    model.train(was_training)


@contextmanager
def _watched(layers: list[Any], moments: dict[Site, Moments]) -> Iterator[None]:
    """Count what enters and leaves each module of these layers while the model runs `gated`."""
    handles = []
    for layer in layers:
        for module, name in (("attn", layer.family.attn), ("mlp", layer.family.mlp)):
            site, held = Site(layer.index, module), dict[str, Tensor]()  # type: ignore[arg-type]

            def keep(_: Any, __: Any, output: Any, held: Any = held) -> None:
                held["output"] = output[0] if isinstance(output, tuple) else output

            # The stand-in is called right after its module, with the stream that entered it.
            def count(
                _: Any, arguments: Any, layer: Any = layer, site: Site = site, held: Any = held
            ) -> None:
                update = parts.added(layer, site.module, held.pop("output"))
                if site not in moments:
                    moments[site] = Moments(update.shape[-1])
                moments[site].add(arguments[0], update)

            handles.append(getattr(layer, name).register_forward_hook(keep))
            stand_in = getattr(layer, f"{module}_stand_in")
            handles.append(stand_in.register_forward_pre_hook(count))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
