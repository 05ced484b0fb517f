"""One token alone, as in decoding one sequence: each module runs or it does not.

Nothing is packed, and margins are Python numbers: at this size handling tensors takes longer than
computing with them. The result is that of the twins. Shapes: D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from skipgpt.model import kernel_fit, parts
from skipgpt.model.halves import keys_and_values
from skipgpt.routing.decision import Site
from skipgpt.routing.router import inverse_rms_of_one

if TYPE_CHECKING:
    from skipgpt.model.layer import RoutedLayer


class Ran(NamedTuple):
    """Which modules of a layer the token runs."""

    attn: bool
    mlp: bool


def suits(layer: RoutedLayer, entering: Tensor) -> bool:
    """Whether this is one token, and both decisions of a sequential layer can be waited for."""
    state = layer.routing
    return (
        entering.numel() == entering.shape[-1]
        and state.execution in ("auto", "sparse")
        and state.may_pack
        and (state.config.input, state.config.kv) == ("layer_input", "dense")
        and not layer.family.is_parallel(layer)
        and entering.device.type == "cpu"
        and kernel_fit.stand_in_kernels(entering) is None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def decide(layer: RoutedLayer, entering: Tensor) -> Ran | None:
    """What the token entering [1, 1, D] runs.

    None where tensors have to decide: under rules that know no other way, where margins are
    recorded, and where routers are not one product.
    """
    state = layer.routing
    config, rule = state.config, state.rule
    keeps = getattr(rule, "keeps", None)
    if state.trace is not None or keeps is None or config.decides != "module":
        return None
    scale = inverse_rms_of_one(entering) if config.normalize else 1.0
    margins = layer.collapsed.alone(entering, layer.attn_router, layer.mlp_router, scale=scale)
    if margins is None:
        return None
    attn, mlp = margins
    index = layer.index
    return Ran(keeps(attn, Site(index, "attn")), keeps(mlp, Site(index, "mlp")))


def run(layer: RoutedLayer, entering: Tensor, ran: Ran, arguments: dict[str, Any]) -> Tensor:
    """The residual stream [1, 1, D] after a sequential layer.

    Args:
        layer: with its modules.
        entering: [1, 1, D], the stream before.
        ran: which modules run.
        arguments: of attention, by name; its cache is updated whatever runs.
    """
    stream = entering
    read = parts.normed(layer, "attn", entering)
    if ran.attn:
        stream = stream + parts.added(layer, "attn", parts.attend(layer, read, arguments))
    else:
        keys_and_values(layer, read, arguments)
        if layer.attn_stand_in is not None:
            stream = stream + layer.attn_stand_in.forward(entering, inverse_rms_of_one(entering))
    if ran.mlp:
        update = parts.feed_forward(layer, parts.normed(layer, "mlp", stream))
        stream = stream + parts.added(layer, "mlp", update)
    elif layer.mlp_stand_in is not None:
        stream = stream + layer.mlp_stand_in.forward(stream, inverse_rms_of_one(stream))
    return stream
