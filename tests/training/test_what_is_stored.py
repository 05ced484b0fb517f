"""What a training step of stage router keeps for its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from runs import rows
from skipgpt.config import recipe
from skipgpt.model.state import execution, use_rule
from skipgpt.routing.decision import GumbelSample
from skipgpt.training.stages import prepare
from tiny import tiny_routed


def stored(model: nn.Module, watched: list[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that a forward stores for backward, and the inputs of some linear layers."""
    kept: list[Tensor] = []
    inputs: list[Tensor] = []
    hooks = [each.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for each in watched]

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    ids = rows(2, 16)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept, inputs


def memory(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def frozen_linear(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def test_no_input_of_a_frozen_product_is_stored() -> None:
    model = prepare(tiny_routed().train(), "router", recipe("paper"))
    # Fused kernels of attention store their own output, which is what the next product reads.
    model.set_attn_implementation("eager")
    linear = frozen_linear(model)
    assert len(linear) == 3 * 7 + 1
    with use_rule(model, GumbelSample()), execution(model, "gated"):
        kept, inputs = stored(model, linear)
    assert len(inputs) == len(linear)
    assert kept
    assert not memory(kept) & memory(inputs)


def test_it_would_be_if_the_weights_trained() -> None:
    model = prepare(tiny_routed().train(), "router", recipe("paper"))
    linear = frozen_linear(model)
    for each in linear:
        each.requires_grad_(True)
    with use_rule(model, GumbelSample()), execution(model, "gated"):
        kept, inputs = stored(model, linear)
    assert memory(inputs) <= memory(kept)


def test_nothing_is_stored_in_front_of_the_first_gate() -> None:
    model = prepare(tiny_routed().train(), "router", recipe("paper"))
    first: list[Tensor] = []
    attention = model.model.layers[0].self_attn

    def keep(tensor: Tensor) -> Tensor:
        first.append(tensor)
        return tensor

    with (
        use_rule(model, GumbelSample()),
        execution(model, "gated"),
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        embedded = model.model.embed_tokens(rows(2, 16))
        angles = model.model.rotary_emb(embedded, torch.arange(16)[None])
        attention(embedded, position_embeddings=angles, attention_mask=None)
    assert not first
