"""Models with a layer that does nothing, and text that they find likely."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

import cases
from skipgpt.model.state import execution
from skipgpt.model.surgery import add_routers, routed_layers
from skipgpt.routing.decision import Site
from tiny import tiny_base

DEEP = 6
EMPTY = 2
"""Layers of the deep model, and which of them adds nothing to the stream."""


@functools.cache
def _deep(seed: int) -> nn.Module:
    base = tiny_base(num_hidden_layers=DEEP, initializer_range=0.2, seed=seed)
    return silence(add_routers(base), EMPTY).eval()


def deep(seed: int = 0) -> nn.Module:
    """A Llama of six layers, the third of them empty; all norms are as transformers draws them."""
    return copy.deepcopy(_deep(seed))


def shallow(family: str) -> nn.Module:
    """A model of a family with three layers, the second of them empty, that is sure of itself."""
    model = silence(add_routers(cases.base(family)), 1).eval()
    model.get_output_embeddings().register_forward_hook(lambda _, args, output: 4 * output)
    return model


@torch.no_grad()
def silence(model: nn.Module, index: int) -> nn.Module:
    """Make a routed layer add nothing to the residual stream."""
    layer = routed_layers(model)[index]
    for name in (layer.family.attn, layer.family.mlp):
        for parameter in getattr(layer, name).parameters():
            parameter.zero_()
    return model


@torch.no_grad()
def own_words(model: nn.Module, count: int = 16, tokens: int = 8) -> Tensor:
    """Token ids [N, T] of what the dense model finds likeliest, so that any change costs loss."""
    made = torch.randint(1, 257, (count, 1), generator=torch.Generator().manual_seed(0))
    with execution(model, "dense"):
        for _ in range(tokens - 1):
            following = model(input_ids=made, use_cache=False).logits[:, -1].argmax(-1)
            made = torch.cat([made, following[:, None]], dim=1)
    return made


def layer(index: int) -> tuple[Site, Site]:
    """A whole layer as a unit."""
    return Site(index, "attn"), Site(index, "mlp")
