"""State dicts of the authors' training code."""

from __future__ import annotations

import pytest
import torch

from skipgpt.convert import convert
from skipgpt.errors import CheckpointError
from skipgpt.model.loading.folder import CONFIG
from tiny import tiny_base

LAYERS, HIDDEN, RANK = 3, 32, 4


TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj")


def linear_routers(layers: int = LAYERS, hidden: int = HIDDEN) -> dict[str, torch.Tensor]:
    """Form 1: what the fork publishes."""
    draw = torch.Generator().manual_seed(2)
    file = {}
    for n in range(layers):
        for module in ("attention", "mlp"):
            router = f"model.layers.{n}.router_{module}.weight_predictor."
            file[router + "weight"] = torch.randn(2, hidden, generator=draw)
            # Of the size of a fresh model's hidden states, so that tokens really differ.
            file[router + "bias"] = 0.05 * torch.randn(2, generator=draw)
    return file


def two_layer_routers() -> dict[str, torch.Tensor]:
    """Form 2: what the training code writes."""
    file = {}
    for key in linear_routers():
        if key.endswith("weight"):
            router = key.removesuffix("weight_predictor.weight")
            file[router + "hidden_layer.weight"] = torch.randn(HIDDEN // 4, HIDDEN)
            file[router + "hidden_layer.bias"] = 0.05 * torch.randn(HIDDEN // 4)
            file[router + "weight_predictor.weight"] = torch.randn(2, HIDDEN // 4)
            file[router + "weight_predictor.bias"] = 0.05 * torch.randn(2)
    return file


def lora(adapter: str = ".default") -> dict[str, torch.Tensor]:
    """The LoRA tensors of form 3, large enough to matter."""
    weights = tiny_base().state_dict()
    return {
        f"model.layers.{n}.block.{module}.lora_{side}{adapter}.weight": 0.1 * torch.randn(*shape)
        for n in range(LAYERS)
        for module in TARGETS
        for rows, columns in [weights[f"model.layers.{n}.{module}.weight"].shape]
        for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK)))
    }


def full_state(base: torch.nn.Module, wrapped: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Form 4: the base's own weights, as the authors' wrapper and PEFT rename them."""
    file = {}
    for key, tensor in base.state_dict().items():
        if any(module in key for module in wrapped):
            key = key.replace(".weight", ".base_layer.weight")
        parts = key.split(".")
        block = [*parts[:3], "block", *parts[3:]] if parts[1] == "layers" else parts
        file[".".join(block)] = tensor.clone()
    return file


def prefixed(prefix: str, file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in file.items()}


def refusal(path, base_folder, out, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert(path, str(base_folder), out, **options)
    assert not (out / CONFIG).exists()
    return str(caught.value)
