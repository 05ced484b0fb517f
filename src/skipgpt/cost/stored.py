"""What a training forward keeps for its backward pass, counted with fake tensors.

Torch's fake tensors have shapes and no data. A forward with two layers of them and one with three
tell what a layer keeps and what the rest does; layers beyond the first two keep the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention

from skipgpt.model.state import execution, record_routing, routing_state, use_rule
from skipgpt.routing.decision import DecisionRule, StraightThrough, Threshold

_FUSED = "skipgpt_fused_unmasked"

Build = Callable[[Any], Any]
"""Makes a model from a config, ready to train, on the meta device."""


@dataclass(frozen=True)
class Stored:
    """Bytes that a forward of some rows keeps, weights left out.

    Attributes:
        layer: of one layer.
        rest: of everything else: embeddings, final norm, logits and loss.
        entering: the residual stream that enters a layer, which checkpointing keeps instead.
        layers: how many the model has.
    """

    layer: float
    rest: float
    entering: float
    layers: int

    def total(self, checkpointing: bool) -> float:
        """Bytes at the end of the forward; with checkpointing, while one layer is recomputed."""
        if checkpointing:
            return self.rest + self.layers * self.entering + self.layer
        return self.rest + self.layers * self.layer


def stored(config: Any, build: Build, rows: int, tokens: int, *, samples: bool) -> Stored:
    """Count what a training forward of `rows` times `tokens` keeps.

    `build` makes the model of a config with fewer layers, and `samples` says whether decisions
    carry gradients, as in the stages that train routers.
    """
    rule: DecisionRule = StraightThrough() if samples else Threshold()
    traced, factor = _traceable(config, build)
    two, three = (stored_bytes(_fake(traced, build, n), rows, tokens, rule) for n in (2, 3))
    text = config.get_text_config()
    layer, entering = three - two, rows * tokens * text.hidden_size * config.dtype.itemsize
    # Logits and loss, which are most of the rest, are float32 in any case.
    return Stored(factor * layer, two - 2 * layer, entering, text.num_hidden_layers)


def _traceable(config: Any, build: Build) -> tuple[Any, float]:
    """The config in a dtype that fake tensors can run, and how much more a layer keeps in its own.

    The product of experts that share a tensor takes bfloat16 alone where nothing is computed.
    """
    shares = any(parameter.ndim == 3 for parameter in build(_with_layers(config, 3)).parameters())
    if not shares or config.dtype == torch.bfloat16:
        return config, 1.0
    return in_dtype(config, torch.bfloat16), config.dtype.itemsize / torch.bfloat16.itemsize


def in_dtype(config: Any, dtype: torch.dtype) -> Any:
    """A copy of a transformers config that makes models of this dtype."""
    made = copy.deepcopy(config)
    made.dtype = made.get_text_config().dtype = dtype
    return made


def stored_bytes(model: Any, rows: int, tokens: int, rule: DecisionRule) -> float:
    """Bytes that one forward of a model keeps, real or fake; weights left out."""
    weights = {_memory(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (memory := _memory(tensor)) not in weights:
            kept[memory] = tensor
        return tensor

    mode = getattr(next(model.parameters()), "fake_mode", None)  # None if the tensors are real
    with mode or nullcontext(), saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.ones(rows, tokens, dtype=torch.long)
        with use_rule(model, rule), execution(model, "gated"), record_routing(model) as trace:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            _ = loss + trace.steps[0].sparsity()
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def _fused(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention by the fused kernel, which keeps no scores; fake tensors take another."""
    if value.shape[-1] != query.shape[-1]:  # as in latent attention; no kernel takes it
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        attended = kernel(query, key, value, 0.0, True)[0]
    return attended.transpose(1, 2).contiguous(), None


def _memory(tensor: Tensor) -> int:
    """Identify the memory that a tensor is a view of."""
    return int(tensor.untyped_storage()._cdata)


def _with_layers(config: Any, layers: int) -> Any:
    fewer = copy.deepcopy(config)
    text = fewer.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return fewer


def _fake(config: Any, build: Build, layers: int) -> Any:
    """The model with so many layers, of fake tensors on a CPU."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = build(_with_layers(config, layers))
    if routing_state(model).config.kv == "dense":  # else its own mask says which keys are there
        ALL_ATTENTION_FUNCTIONS.register(_FUSED, _fused)
        # No mask: causal attention of whole rows needs none.
        ALL_MASK_ATTENTION_FUNCTIONS.register(_FUSED, lambda *_, **__: None)
        model.set_attn_implementation(_FUSED)
    made: dict[int, nn.Parameter] = {}
    with FakeTensorMode():
        for module in model.modules():
            for name, each in module._parameters.items():
                if each is not None:
                    made.setdefault(id(each), _like(each))
                    module._parameters[name] = made[id(each)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


def _like(parameter: nn.Parameter) -> nn.Parameter:
    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
    return nn.Parameter(empty, requires_grad=parameter.requires_grad)
