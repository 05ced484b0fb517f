"""Shortened LLaMA: whole layers from one ranking, by perplexity or by a first-order estimate.

Source: arXiv 2402.02834, github.com/Nota-NetsPresso/shortened-llm.

    PPL      the loss of the model without that one layer
    Taylor   the sum over a layer's weights of |weight x gradient of the loss|, biases left out

The first-order estimate underrates the ends of a model: in the authors' published orders for Llama
1 and 2 with 7 B, layer 0 is removed first. Their "+" heuristic keeps the first 4 and the last 2
layers, whatever the depth. We keep the same shares, 4/32 and 2/32 of the layers and at least one at
each end, so that small models have layers to choose from; protected layers are removed last.

The authors' script applies the heuristic to PPL, too, where it has no effect at the usual budgets:
the first protected layer is 27th in their published order for Llama-2-7B, and 15th for Llama-3-8B.
We do not apply it there. The authors calibrate on 10 rows of 128 tokens of BookCorpus, we on the
given blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skipgpt.baselines.weights import base_weights, refuse_quantized
from skipgpt.evaluation.windows import batches
from skipgpt.model.state import execution
from skipgpt.model.surgery import routed_layers
from skipgpt.removal.suffix_loss import SuffixLoss
from skipgpt.removal.units import Unit, units_of
from skipgpt.system.mode import in_mode
from skipgpt.system.progress import OnStep

KEPT_FIRST, KEPT_LAST = 4 / 32, 2 / 32
"""Shares of the layers that Taylor keeps at either end."""


def losses_alone(
    model: nn.Module, blocks: Tensor, *, batch_size: int = 8, on_step: OnStep | None = None
) -> dict[Unit, float]:
    """Score each layer by the loss without that one.

    Arguments and errors: `skipgpt.removal.search.Method`.
    """
    losses = {}
    layers = units_of(model, "layers")
    loss = SuffixLoss(model, blocks, batch_size=batch_size)
    for done, unit in enumerate(layers, 1):
        losses[unit] = loss(unit)
        if on_step:
            on_step(done, len(layers))
    return losses


def taylor(
    model: nn.Module, blocks: Tensor, *, batch_size: int = 8, on_step: OnStep | None = None
) -> dict[Unit, float]:
    """Score each layer by how much its weights matter to the loss, to first order.

    The gradient is that of the mean loss over all blocks, so the batch size does not matter. During
    the call it takes as much memory as the weights of the layers.

    Arguments and errors: `skipgpt.removal.search.Method`.
    """
    refuse_quantized(model, "estimating the importance of layers from gradients")
    layers = units_of(model, "layers")
    weights = {
        unit: [p for name, p in base_weights(layer).items() if not name.endswith("bias")]
        for unit, layer in zip(layers, routed_layers(model), strict=True)
    }
    with _only_gradients_of(model, (p for each in weights.values() for p in each)):
        _backward(model, blocks, batch_size, on_step)
        return {
            unit: sum(
                (p.detach() * p.grad).abs().sum(dtype=torch.float32).item()
                for p in each
                if p.grad is not None
            )
            for unit, each in weights.items()
        }


def ends(layers: Sequence[Unit]) -> set[Unit]:
    """Return the layers at either end that Taylor removes last."""
    first = max(1, round(KEPT_FIRST * len(layers)))
    last = max(1, round(KEPT_LAST * len(layers)))
    return {*layers[:first], *layers[-last:]}


def _backward(model: Any, blocks: Tensor, batch_size: int, on_step: OnStep | None) -> None:
    """Accumulate the gradient of the mean loss over blocks [N, T] in the parameters."""
    device = next(model.parameters()).device
    predicted = blocks.shape[0] * (blocks.shape[1] - 1)
    parts = list(batches(blocks, batch_size))
    with in_mode(model, training=False), execution(model, "dense"), torch.enable_grad():
        for done, batch in enumerate(parts, 1):
            ids = batch.to(device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            nll = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
            torch.autograd.backward(nll / predicted)
            if on_step:
                on_step(done, len(parts))


@contextmanager
def _only_gradients_of(model: nn.Module, wanted: Iterable[nn.Parameter]) -> Iterator[None]:
    """Enable only these parameters' gradients, cleared, inside the block; then restore all."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in wanted:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, requires_grad, grad in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
