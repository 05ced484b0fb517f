"""One token alone, as in decoding one sequence: each module runs or it does not.

Nothing is packed, and decisions are Python bools: at this size handling tensors takes longer than
computing with them. The result is that of the twins, of which `sparse` does the same for any
number of tokens. Shapes: D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from skipgpt.model import kernel_fit, parts
from skipgpt.model.halves import keys_and_values
from skipgpt.routing.decision import Threshold
from skipgpt.routing.router import inverse_rms_of_one

if TYPE_CHECKING:
    from skipgpt.model.layer import RoutedLayer


class Ran(NamedTuple):
    """Which modules of a layer the token runs."""

    attn: bool
    mlp: bool


def decide(layer: RoutedLayer, entering: Tensor) -> Ran | None:
    """What the token entering [1, 1, D] runs; None where `layer.py` has to decide.

    It has to for several tokens, elsewhere than on a CPU, under rules other than a threshold,
    where margins are recorded, and for routers that are not one product of the same input.
    """
    state = layer.routing
    config, rule = state.config, state.rule
    if (
        entering.numel() != entering.shape[-1]
        or state.execution not in ("auto", "sparse")
        or not state.may_pack
        or state.trace is not None
        or type(rule) is not Threshold
        or (config.decides, config.input, config.kv) != ("module", "layer_input", "dense")
        or layer.family.is_parallel(layer)
        or entering.device.type != "cpu"
        or kernel_fit.stand_in_kernels(entering) is not None
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        return None
    scale = inverse_rms_of_one(entering) if config.normalize else 1.0
    margins = layer.collapsed.alone(entering, layer.attn_router, layer.mlp_router, scale=scale)
    return None if margins is None else Ran(*(margin > rule.value for margin in margins))


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
