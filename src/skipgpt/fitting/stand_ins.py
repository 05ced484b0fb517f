"""Least-squares fit of stand-ins: low-rank maps that predict what each module adds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.config import FitStage
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.fitting.gated_passes import check_finite
from skipgpt.model import modules
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.routing.decision import ModuleDecision, Site
from skipgpt.routing.stand_in import Moments, fit
from skipgpt.system.mode import in_mode
from skipgpt.system.progress import OnStep

NEAR = 3e-2
"""Penalty on the change of a stand-in that is fitted again to few tokens."""
FEWEST = 4
"""Tokens per rank that a second fit needs; with fewer, a stand-in stays as it is."""
SUMS_BYTES = 2**31
"""Memory limit of the sums that stand-ins are fitted from."""


@torch.no_grad()
def fit_stand_ins(
    model: nn.Module,
    text: Tensor,
    batch_size: int = 8,
    *,
    threshold: float = -math.inf,
    on_step: OnStep | None = None,
) -> None:
    """Fit every stand-in to what its module adds on a text [N, T], in place.

    Under a threshold only tokens that skip count, in streams that have skipped, and each stand-in
    is kept near what it was. Minus infinity fits all tokens of the dense model.

    Raises:
        TrainingError: a module's input or output is so large that its square is infinite, or NaN.

    Example:
        fit_stand_ins(model, blocks.train[:128])
    """
    layers: list[Any] = [*routed_layers(model)]
    width = layers[0].attn_stand_in.up.out_features
    at_once = layers_at_once(width)  # in one pass over the text
    batches, done = text.split(batch_size), 0  # type: ignore[no-untyped-call]
    total = len(batches) * -(-len(layers) // at_once)
    device = next(model.parameters()).device
    for first in range(0, len(layers), at_once):
        some, moments = layers[first : first + at_once], dict[Site, Moments]()
        rule = _Routes(threshold)
        with (
            in_mode(model, training=False),
            _watched(model, some, moments, rule),
            execution(model, "gated"),
            use_rule(model, rule),
        ):
            for rows in batches:
                model(input_ids=rows.to(device), use_cache=False, logits_to_keep=1)
                done += 1
                if on_step:
                    on_step(done, total)
        for site, each in moments.items():
            stand_in = getattr(layers[site.layer], f"{site.module}_stand_in")
            if rule.is_dense:
                fit(stand_in, each)
            elif each.count >= FEWEST * stand_in.down.out_features:
                fit(stand_in, each, NEAR, around=True)


def sum_bytes(width: int) -> int:
    """Return the bytes of one layer's sums: for each of two modules two D x D in float64."""
    return 2 * 2 * 8 * width**2


def layers_at_once(width: int) -> int:
    """Return how many layers of this width have sums that fit into memory together."""
    return max(1, SUMS_BYTES // sum_bytes(width))


def fit_to_removal(
    model: nn.Module, text: Tensor, stage: FitStage, on_step: OnStep | None = None
) -> None:
    """Fit the stand-ins of removed modules again, in place, as often as stage `fit` fits its own.

    The model has the constant routers of its removal (`constant_routes`): all tokens of the text
    [N, T] skip the same modules, and streams are those without them.
    """
    sample = subsample_rows(text, stage.stand_in_tokens)
    for _ in range(stage.rounds + 1):
        fit_stand_ins(model, sample, threshold=0.0, on_step=on_step)


class _Routes:
    """A threshold rule that remembers which tokens of each site skip."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.is_dense = threshold, threshold == -math.inf
        self.skipped: dict[Site, Tensor] = {}

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        keep = margin > self.threshold
        self.skipped[site] = ~keep
        return ModuleDecision.hard(keep, margin)

    def counted(self, site: Site) -> Tensor | None:
        """Return the mask [B, T] of tokens that a stand-in is fitted to; None for all."""
        if self.is_dense:
            return None
        # Where one router decides for a layer, it is asked about attention only.
        return self.skipped.get(site, self.skipped[Site(site.layer, "attn")])


@contextmanager
def _watched(
    model: nn.Module, layers: list[Any], moments: dict[Site, Moments], rule: _Routes
) -> Iterator[None]:
    """Add up inputs and outputs of these layers' modules while the model runs `gated`."""
    handles = []
    for layer in layers:
        for module, name in (("attn", layer.family.attn), ("mlp", layer.family.mlp)):
            site, held = Site(layer.index, module), dict[str, Tensor]()  # type: ignore[arg-type]

            def keep(_: Any, __: Any, output: Any, held: Any = held) -> None:
                held["output"] = modules.first_of(output)

            # The stand-in is called right after its module, with the stream that entered it.
            def count(
                _: Any, arguments: Any, layer: Any = layer, site: Site = site, held: Any = held
            ) -> None:
                update = modules.post_norm(layer, site.module, held.pop("output"))
                # An RMS is of squares: a stream whose squares are infinite would read as zeros.
                entering, what = arguments[0], "squared inputs and outputs"
                sizes = [each.float().square().sum(-1).flatten() for each in (entering, update)]
                check_finite(model, site, sizes[0] + sizes[1], "fitting stand-ins", what)
                if site not in moments:
                    moments[site] = Moments(update.shape[-1])
                moments[site].add(entering, update, rule.counted(site))

            handles.append(getattr(layer, name).register_forward_hook(keep))
            stand_in = getattr(layer, f"{module}_stand_in")
            handles.append(stand_in.register_forward_pre_hook(count))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
