"""Decides decode steps on a CPU in Python floats, so that the host knows the counts.

`run.py` then runs them. For so few elements tensor overhead exceeds the arithmetic. A module that
no token keeps computes only keys and values, and one that all keep runs as in the base model. Only
where they differ is there something to pack or to choose. Shapes: B batch, D hidden.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import ModuleDecision, Site
from skipgpt.routing.router import inverse_rms_as_numbers, margins_as_numbers

MOST = 32
"""Largest batch; for more sequences tensors decide faster than a loop over floats."""


def decide(layer: RoutedLayer, entering: Tensor) -> tuple[ModuleDecision, ModuleDecision] | None:
    """Decide what the tokens `entering` [B, 1, D] run, in a decode step of few sequences.

    Returns None where tensors have to decide: in any other forward, under rules without `keeps`,
    where margins are recorded, and where the routers cannot be fused into one product.
    """
    state = layer.routing
    config, keeps = state.config, getattr(state.rule, "keeps", None)
    if (
        entering.shape[1] != 1
        or len(entering) > MOST
        or keeps is None
        or state.execution not in ("auto", "sparse")
        or not state.can_pack
        or state.noise is not None
        or (config.decides, config.input, config.kv) != ("module", "layer_input", "dense")
        or entering.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not all(recorder.counts_only for recorder in state.recorders)
    ):
        return None
    scales = inverse_rms_as_numbers(entering) if config.normalize else [1.0] * len(entering)
    margins = margins_as_numbers(entering, layer.attn_router, layer.mlp_router, scales=scales)
    if margins is None:
        return None
    attn = _decision(keeps(margins[0], Site(layer.index, "attn")))
    return attn, _decision(keeps(margins[1], Site(layer.index, "mlp")))


def _decision(keep: list[bool]) -> ModuleDecision:
    """The decision of one token per sequence; nobody reads its margin."""
    kept = sum(keep)
    if kept in (0, len(keep)):
        return _alike(len(keep), kept > 0)
    flags = torch.tensor(keep)[:, None]
    gate = flags.float()
    return ModuleDecision(flags, gate, gate, kept)


@functools.cache
def _alike(batch: int, keep: bool) -> ModuleDecision:
    """The decision of a batch that keeps all or nothing; made once."""
    with torch.inference_mode(False):  # it outlives the mode and the device of its first caller
        gate = torch.full((batch, 1), float(keep), device="cpu")
    return ModuleDecision(gate.bool(), gate, gate, batch if keep else 0)
