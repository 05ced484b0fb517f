"""Decoding, one token per sequence: of a module that no token keeps only keys and values run.

Margins are Python floats: for so few elements tensor overhead exceeds the arithmetic. A module that
all tokens keep runs as in the base model. Only where they differ is there something to pack or to
choose. The result is that of `gated` and `sparse`. Shapes: B batch, D hidden.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipgpt.model.execution.plan import plan_of_count
from skipgpt.model.execution.run import run as run_by_plan
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.trace import KeepCounts
from skipgpt.routing.decision import Module, ModuleDecision, Site
from skipgpt.routing.router import inverse_rms_as_numbers, margins_as_numbers

MOST = 32
"""Largest batch; for more sequences tensors decide faster than a loop over floats."""


class Keeps(NamedTuple):
    """Which modules of a layer the token of each sequence runs."""

    attn: list[bool]
    mlp: list[bool]


def can_use(layer: RoutedLayer, entering: Tensor) -> bool:
    """Whether this is a decode step of few sequences through a sequential layer on a CPU."""
    state = layer.routing
    return (
        entering.shape[1] == 1
        and len(entering) <= MOST
        and state.execution in ("auto", "sparse")
        and state.can_pack
        and state.noise is None
        and (state.config.input, state.config.kv) == ("layer_input", "dense")
        and not layer.family.is_parallel(layer)
        and entering.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def decide(layer: RoutedLayer, entering: Tensor) -> Keeps | None:
    """Decide what the tokens `entering` [B, 1, D] run.

    Returns None where tensors have to decide: under rules without `keeps`, where margins are
    recorded, and where the routers cannot be fused into one product.
    """
    state = layer.routing
    config, rule = state.config, state.rule
    keeps = getattr(rule, "keeps", None)
    counts_only = all(recorder.counts_only for recorder in state.recorders)
    if not counts_only or keeps is None or config.decides != "module":
        return None
    scales = inverse_rms_as_numbers(entering) if config.normalize else [1.0] * len(entering)
    margins = margins_as_numbers(entering, layer.attn_router, layer.mlp_router, scales=scales)
    if margins is None:
        return None
    index = layer.index
    return Keeps(keeps(margins[0], Site(index, "attn")), keeps(margins[1], Site(index, "mlp")))


def record(layer: RoutedLayer, keeps: Keeps) -> None:
    """Pass what `decide` returned to the open recorders, if any; they only count."""
    recorders, mask = layer.routing.recorders, layer.routing.token_mask
    if not recorders:
        return
    attn, mlp, real = sum(keeps.attn), sum(keeps.mlp), len(keeps.attn)
    if mask is not None:
        flags = mask[:, 0].tolist()
        attn, mlp = (sum(map(operator.and_, each, flags)) for each in keeps)
        real = sum(flags)
    for recorder in recorders:
        assert isinstance(recorder, KeepCounts)
        recorder.record_kept(layer.index, attn, mlp, real)


def run(layer: RoutedLayer, entering: Tensor, keeps: Keeps, arguments: dict[str, Any]) -> Tensor:
    """The stream [B, 1, D] after a sequential layer; its cache is updated whatever runs."""
    stream = _run_module(layer, "attn", entering, keeps.attn, arguments)
    return _run_module(layer, "mlp", stream, keeps.mlp, arguments)


def _run_module(
    layer: RoutedLayer,
    module: Module,
    entering: Tensor,
    keep: list[bool],
    arguments: dict[str, Any],
) -> Tensor:
    """`entering` [B, 1, D] plus the module's update where kept, else plus its stand-in's."""
    kept, decision = sum(keep), ALL_ALIKE
    if kept not in (0, len(keep)):
        flags = torch.tensor(keep)[:, None]
        decision = ModuleDecision.hard(flags, flags.float())
    chosen = plan_of_count(layer, module, entering, kept, arguments)
    return run_by_plan(layer, module, chosen, entering, entering, decision, arguments)


ALL_ALIKE = ModuleDecision.hard(torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1))
"""Placeholder for a decision that is not read: the plan says whether all tokens run or none."""
