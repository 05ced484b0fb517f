"""LaCo: merges layers into the one before them by adding up their weight differences.

Source: arXiv 2402.11187, github.com/yangyifei729/LaCo. From the top of the model downwards, the
`merge - 1` layers after layer l are merged into it and removed:

    weights of l  <-  weights of l + sum over k of (weights of l+k - weights of l)

if the outputs of the final norm stay similar enough to the dense model's: the cosine of whole rows
[T x D], averaged over rows. Otherwise the next lower layer is tried.

Where we differ:
- The sum is the paper's. The authors' notebooks update l while they add, so that the sum collapses
  to the weights of the last of those layers; with two layers per merge both are the same.
- The authors set the threshold and `merge` by hand for each model (0.45 and 7 for Llama-2-13B, 0.6
  and 3 for Baichuan2-13B, both of 40 layers), and the budget follows. Here the budget is given:
  sweeps start from the unmerged model with ever lower thresholds until one reaches it; the last
  merge takes no more layers than are left to remove. `merge` grows with the depth: sums of many
  differences ruin a model of few layers.
- All parameters of attention and MLP are merged, biases and inner norms included, in any family;
  the authors merge the seven projections of Llama. Both leave norms around the modules as they
  are, and what is not a weight, such as a sliding window.
- Layers of different structure, such as dense ones and mixtures of experts, are not merged.
- The authors calibrate on 2 to 5 sentences, we on the given blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from skipgpt.baselines.weights import base_weights, refuse_quantized
from skipgpt.errors import ConfigError
from skipgpt.evaluation.perplexity import total_loss
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routed_layers
from skipgpt.removal.units import Unit, check_removals, sites_of, units_of
from skipgpt.routing.decision import Forced
from skipgpt.system.progress import OnStep

START, STEP = 0.95, 0.05
"""The first threshold, and the step by which it is lowered between sweeps."""


def laco(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> list[Unit]:
    """Merge layers into others, in place, until `removals` layers are gone.

    Unlike all other methods this one changes base weights, so the result holds for this model and
    this number of removals only; a prefix of it is no result. Pass a copy if the model is still
    needed. On failure the weights are restored.

    Each merge makes an eighth of all layers one, at least 2. `on_step` is called with the most
    layers that a sweep has removed so far, and layers to remove. Other arguments and the result:
    `skipgpt.removal.search.Method`.

    Raises:
        ConfigError: more removals than layers that can be merged.
        UnsupportedModelError: the base is quantised: its weights cannot be added.

    Example:
        merged = copy.deepcopy(model)
        constant_routes(merged, laco(merged, blocks, 4))
    """
    refuse_quantized(model, "merging layers")
    units = units_of(model, "layers")
    check_removals(removals, units)
    merge = max(2, round(len(units) / 8))
    judge, best = _Judge(model, blocks, batch_size), 0
    while True:
        merges = Merges(model)
        try:
            gone = _sweep(merges, judge, units, removals, min(merge, removals + 1))
        except BaseException:
            merges.undo_all()
            raise
        best = max(best, len(gone))
        if on_step:
            on_step(best, removals)
        if len(gone) == removals:
            return gone
        merges.undo_all()
        if not judge.lower():
            raise ConfigError(
                "merging layers",
                got=f"{removals} removals",
                expected=f"at most {best}, as many as can be merged here",
            )


def _sweep(
    merges: Merges, judge: _Judge, units: list[Unit], removals: int, merge: int
) -> list[Unit]:
    """Merge from the top downwards what the judge accepts; return the layers removed."""
    alive, gone = list(range(len(units))), list[Unit]()
    at = max(0, len(alive) - 1 - merge)
    while at >= 0 and len(gone) < removals:
        end = at + 1 + min(merge - 1, removals - len(gone))
        base, others = alive[at], alive[at + 1 : end]
        if not others or not merges.fit([base, *others]):
            at -= 1
            continue
        merges.merge(base, others)
        going = [units[index] for index in reversed(others)]
        if judge.accepts([*gone, *going]):
            gone += going
            for index in others:  # their own merges are in the base now
                merges.undo(index)
            del alive[at + 1 : end]
        else:
            merges.undo(base)
        at -= 1
    return gone


class Merges:
    """The merges of a routed model, by layer index; only attention and MLP weights change."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = routed_layers(model)
        self._originals: dict[int, dict[str, Tensor]] = {}

    def fit(self, layers: Sequence[int]) -> bool:
        """Whether these layers have weights of the same names and shapes."""
        shapes = [{name: p.shape for name, p in self._weights(n).items()} for n in layers]
        return all(each == shapes[0] for each in shapes)

    @torch.no_grad()
    def merge(self, base: int, others: Sequence[int]) -> None:
        """Add the weight difference of each other layer to the base layer's weights."""
        weights = self._weights(base)
        current = {name: weight.detach().clone() for name, weight in weights.items()}
        self._originals.setdefault(base, current)
        for name, weight in weights.items():
            own = weight.float()
            merged = own.clone()
            for other in others:
                merged += self._weights(other)[name].to(own) - own
            weight.copy_(merged)

    @torch.no_grad()
    def undo(self, base: int) -> None:
        """Restore a layer's weights from before its merges, if it has any."""
        weights = self._weights(base)
        for name, original in self._originals.pop(base, {}).items():
            weights[name].copy_(original)

    def undo_all(self) -> None:
        """Restore the weights of all layers."""
        for base in list(self._originals):
            self.undo(base)

    def _weights(self, index: int) -> dict[str, nn.Parameter]:
        layer: RoutedLayer = self._layers[index]
        modules = (f"{layer.family.attn}.", f"{layer.family.mlp}.")
        found = base_weights(layer).items()
        return {name: weight for name, weight in found if name.startswith(modules)}


class _Judge:
    """Judges whether the final states without some layers are similar to the unmerged model's."""

    def __init__(self, model: nn.Module, blocks: Tensor, batch_size: int) -> None:
        self._model, self._blocks, self._batch_size = model, blocks, batch_size
        self._threshold = START
        self._rejected: list[float] = []
        self._dense: list[Tensor] = []
        with execution(model, "dense"):
            self._run(lambda states: self._dense.append(states.cpu()))

    def accepts(self, removed: list[Unit]) -> bool:
        """Whether the similarity, with the current weights, is above the threshold."""
        similarity = self._similarity(removed)
        if similarity > self._threshold:
            return True
        self._rejected.append(similarity)
        return False

    def lower(self) -> bool:
        """Lower the threshold until a verdict changes; False where nothing was rejected."""
        if not self._rejected:
            return False
        while self._threshold >= max(self._rejected):
            self._threshold -= STEP
        self._rejected = []
        return True

    def _similarity(self, removed: list[Unit]) -> float:
        """Mean cosine of rows [T x D]; -1 if it is NaN."""
        dense, cosines = iter(self._dense), list[Tensor]()

        def compare(states: Tensor) -> None:
            wanted = next(dense).to(states.device)
            cosines.append(cosine_similarity(states.flatten(1).float(), wanted.flatten(1).float()))

        rule = Forced.without(sites_of(removed))
        with use_rule(self._model, rule), execution(self._model, "sparse"):
            self._run(compare)
        mean = torch.cat(cosines).mean().item()
        return -1.0 if math.isnan(mean) else mean

    def _run(self, see: Callable[[Tensor], None]) -> None:
        """Call `see` with the input of the language-model head, batch [B, T, D] by batch."""
        head: Any = self._model.get_output_embeddings()  # type: ignore[operator]
        handle = head.register_forward_pre_hook(lambda _, args: see(args[0]))
        try:
            total_loss(self._model, self._blocks, self._batch_size)
        finally:
            handle.remove()
