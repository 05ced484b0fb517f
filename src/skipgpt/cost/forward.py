"""The work of one forward, dense or with modules skipped, and the speed-up it allows.

A machine has two limits, so a forward has two costs:

    FLOPs    what a prefill is bound by: products of the tokens that run
    bytes    what decoding is bound by: every weight that some token of the batch needs is read
             once, and the cached keys and values of each token that runs attention

So skipping pays in FLOPs for every token, and in bytes only where all tokens of a forward skip
the same module: at batch 8 and with independent decisions, a module skipped by 40 % is read in
99.9 % of the forwards. Norms, rotary embeddings and activations are left out of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from skipgpt.cost.counts import (
    bytes_of,
    deciding_parameters,
    head_parameters,
    layer_bytes,
    layer_costs,
    parameters_of,
)
from skipgpt.model.surgery import routed_layers, routers, stand_ins
from skipgpt.routing.decision import MODULES, Site


@dataclass(frozen=True)
class Forward:
    """The size of a forward.

    Attributes:
        batch_size: rows (B).
        tokens: query tokens per row (T): the prompt in prefill, 1 in decoding.
        cached: tokens per row that are in the cache before.
        logits: tokens per row whose logits are computed.
    """

    batch_size: int = 1
    tokens: int = 1
    cached: int = 0
    logits: int = 1

    @property
    def rows(self) -> int:
        """Query tokens in all, B * T."""
        return self.batch_size * self.tokens


@dataclass(frozen=True)
class Work:
    """The FLOPs and bytes of a forward.

    Attributes:
        linear: FLOPs of the projections of attention and of the MLP.
        core: FLOPs of scores and of weighted values that causality and sliding windows require;
            a kernel that is given a mask computes the others, too.
        head: FLOPs of the language-model head.
        routing: FLOPs of routers and stand-ins.
        weight_bytes: weights that are read.
        cache_bytes: keys and values that are read and written; in a sliding layer, those that its
            window leaves in the cache.
    """

    linear: float
    core: float
    head: float
    routing: float
    weight_bytes: float
    cache_bytes: float

    @property
    def flops(self) -> float:
        """All FLOPs."""
        return self.linear + self.core + self.head + self.routing

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.weight_bytes + self.cache_bytes


def work(
    model: nn.Module,
    forward: Forward,
    keep: Mapping[Site, float] | None = None,
    ran: Mapping[Site, float] | None = None,
) -> Work:
    """What one forward of a routed model costs, or of its base.

    Args:
        model: with routers; may be on the meta device.
        forward: its size.
        keep: share of tokens that each site runs; None is the dense base, without routers.
        ran: share of forwards in which some token runs the site (the union of the batch); where
            it is not given, tokens are assumed to decide independently.

    Example:
        >>> dense = work(model, Forward(tokens=512))
        >>> run = work(model, Forward(tokens=512), dict.fromkeys(routers(model), 0.6))
        >>> dense.flops / run.flops  # the speed-up where nothing but FLOPs takes time
        1.52
    """
    number_bytes = cast("torch.dtype", model.dtype).itemsize
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    linear = core = cache = 0.0
    weights = float(bytes_of(head))
    for layer in routed_layers(model):
        costs, (kv, qo, mlp_bytes) = layer_costs(layer), layer_bytes(layer)
        sites = [Site(layer.index, kind) for kind in MODULES]
        attn, mlp = (1.0 if keep is None else keep[site] for site in sites)
        attn_ran, mlp_ran = (_union(keep, ran, site, forward.rows) for site in sites)
        policy = layer.routing.config.kv if keep is not None else "dense"
        keys, keys_ran = (attn, attn_ran) if policy == "skip" else (1.0, 1.0)
        projections, scores = layer_flops(layer, forward, attn, mlp, keys)
        linear, core = linear + projections, core + scores
        weights += keys_ran * kv + attn_ran * qo + mlp_ran * mlp_bytes
        # A row of the cache is read where any of the row's own queries runs.
        read = costs.held(forward.cached) * (1 - (1 - attn) ** forward.tokens)
        written = max(1, costs.held(forward.tokens))
        cache += costs.cached * number_bytes * keys * forward.batch_size * (read + written)
    routing = 0.0
    if keep is not None:
        routing += deciding_parameters(model)
        weights += sum(bytes_of(each) for each in routers(model).values())
        for site, each in stand_ins(model).items():
            routing += (1 - keep[site]) * parameters_of(each)
            weights += (1 - keep[site] ** forward.rows) * bytes_of(each)
    return Work(
        linear=linear,
        core=core,
        head=2.0 * forward.batch_size * forward.logits * head_parameters(model),
        routing=2 * forward.rows * routing,
        weight_bytes=weights,
        cache_bytes=cache,
    )


def layer_flops(
    layer: Any, forward: Forward, attn: float = 1.0, mlp: float = 1.0, keys: float = 1.0
) -> tuple[float, float]:
    """FLOPs of one layer's projections and MLP, and of its attention core.

    The shares are those of the tokens that run attention and MLP, and that have keys and values.
    """
    costs = layer_costs(layer)
    linear = keys * costs.kv + attn * costs.qo + mlp * costs.mlp
    core = attn * costs.core_width * keys * costs.attended(forward.cached, forward.tokens)
    return 2 * forward.rows * linear, 4 * forward.rows * core


def _union(
    keep: Mapping[Site, float] | None, ran: Mapping[Site, float] | None, site: Site, rows: int
) -> float:
    """Share of forwards in which some token runs the site."""
    if ran is not None:
        return ran[site]
    return 1.0 if keep is None else 1 - (1 - keep[site]) ** rows
