"""One token of each sequence, as in decoding: a module that no token wants is not run at all.

Margins are Python numbers: at this size handling tensors takes longer than computing with them.
What all tokens want is run as in the base model. Only where they differ is there something to
pack or to choose. The result is that of the twins. Shapes: B batch, D hidden.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipgpt.model import modules
from skipgpt.model.attention.split import keys_and_values
from skipgpt.model.execution import kernel_support, sparse
from skipgpt.model.execution.auto import is_worth_packing
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.trace import KeepCounts
from skipgpt.routing.decision import Module, ModuleDecision, Site
from skipgpt.routing.fused_margins import margins_as_numbers
from skipgpt.routing.router import inverse_rms_as_numbers
from skipgpt.routing.stand_in import StandIn

MOST = 32
"""Sequences at most; more are decided by tensors sooner than one by one."""


class Keeps(NamedTuple):
    """Which modules of a layer the token of each sequence runs."""

    attn: list[bool]
    mlp: list[bool]


def can_use(layer: RoutedLayer, entering: Tensor) -> bool:
    """Whether these are few tokens, and both decisions of a sequential layer can be waited for."""
    state = layer.routing
    return (
        entering.shape[1] == 1
        and len(entering) <= MOST
        and state.execution in ("auto", "sparse")
        and state.can_pack
        and (state.config.input, state.config.kv) == ("layer_input", "dense")
        and not layer.family.is_parallel(layer)
        and entering.device.type == "cpu"
        and kernel_support.stand_in_kernels(entering) is None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def decide(layer: RoutedLayer, entering: Tensor) -> Keeps | None:
    """What the tokens entering [B, 1, D] run.

    None where tensors have to decide: under rules that know no other way, where margins are
    recorded, and where routers are not one product.
    """
    state = layer.routing
    config, rule = state.config, state.rule
    keeps = getattr(rule, "keeps", None)
    recorder = state.recorder
    recorded = recorder is not None and not recorder.counts_only
    if recorded or keeps is None or config.decides != "module":
        return None
    scales = inverse_rms_as_numbers(entering) if config.normalize else [1.0] * len(entering)
    margins = margins_as_numbers(entering, layer.attn_router, layer.mlp_router, scales=scales)
    if margins is None:
        return None
    index = layer.index
    return Keeps(keeps(margins[0], Site(index, "attn")), keeps(margins[1], Site(index, "mlp")))


def record(layer: RoutedLayer, keeps: Keeps) -> None:
    """Tell the open recorder, if any, what `decide` gave."""
    state = layer.routing
    if not isinstance(state.recorder, KeepCounts):
        return
    attn, mlp = keeps
    if state.token_mask is not None:
        real = state.token_mask[:, 0].tolist()
        attn, mlp = (
            [kept and is_real for kept, is_real in zip(each, real, strict=True)] for each in keeps
        )
    else:
        real = [True] * len(attn)
    state.recorder.record_kept(layer.index, sum(attn), sum(mlp), sum(real))


def run(layer: RoutedLayer, entering: Tensor, keeps: Keeps, arguments: dict[str, Any]) -> Tensor:
    """The residual stream [B, 1, D] after a sequential layer.

    Args:
        layer: with its modules.
        entering: [B, 1, D], the stream before.
        keeps: which modules run.
        arguments: of attention, by name; its cache is updated whatever runs.
    """
    keep, instead = keeps.attn, layer.attn_stand_in
    if _packs(layer, "attn", entering, keep, arguments):
        decision = _as_tensors(keep)
        stream = sparse.attention(layer, entering, entering, decision, arguments)
        stream = _stood_in(instead, stream, entering, decision)
    else:
        update, read = None, modules.pre_norm(layer, "attn", entering)
        if any(keep):
            update = modules.post_norm(layer, "attn", modules.run_attention(layer, read, arguments))
        else:
            keys_and_values(layer, read, arguments)
        stream = _added(entering, update, keep, instead)
    keep, instead = keeps.mlp, layer.mlp_stand_in
    if _packs(layer, "mlp", stream, keep, arguments):
        decision = _as_tensors(keep)
        return _stood_in(instead, sparse.mlp(layer, stream, stream, decision), stream, decision)
    update = None
    if any(keep):
        update = modules.run_mlp(layer, modules.pre_norm(layer, "mlp", stream))
        update = modules.post_norm(layer, "mlp", update)
    return _added(stream, update, keep, instead)


def _packs(
    layer: RoutedLayer,
    module: Module,
    entering: Tensor,
    keep: list[bool],
    arguments: dict[str, Any],
) -> bool:
    """Whether the tokens of some sequences are taken out of those of all."""
    kept = sum(keep)
    if kept in (0, len(keep)):
        return False
    if layer.routing.execution == "sparse":
        return True
    return is_worth_packing(layer, module, entering, kept, arguments)


def _added(
    stream: Tensor, update: Tensor | None, keep: list[bool], stand_in: StandIn | None
) -> Tensor:
    """Stream [B, 1, D] plus update [B, 1, D] where keep, None where nobody keeps, else a stand-in.

    Args:
        stream: what entered the module, too.
        update: of the module.
        keep: of each sequence.
        stand_in: of those that skip, if there is one.
    """
    if update is not None and all(keep):
        return stream + update
    instead = None if stand_in is None else stand_in(stream)
    if update is None:
        return stream if instead is None else stream + instead
    kept = torch.tensor(keep)[:, None, None]
    return stream + torch.where(kept, update, 0.0 if instead is None else instead)


def _as_tensors(keep: list[bool]) -> ModuleDecision:
    kept = torch.tensor(keep)[:, None]
    return ModuleDecision.hard(kept, kept.float())


def _stood_in(
    stand_in: StandIn | None, stream: Tensor, entering: Tensor, decision: ModuleDecision
) -> Tensor:
    return stream if stand_in is None else sparse.stand_in(stand_in, stream, entering, decision)
