"""Tiny models in which a mistake shows: every weight matters to the logits."""

from __future__ import annotations

import torch
from torch import nn

from zoo import build


def build_lively(name: str, attention: str | None = None) -> nn.Module:
    """A random model in which every weight matters to the logits.

    With the usual small initial weights attention is uniform, soft caps are linear and layers add
    next to nothing: mistakes would be invisible.
    """
    model = build(name, attention=attention, initializer_range=0.2)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.2
            if _is_norm(path) or path.endswith("bias") or parameter.ndim == 1:
                parameter.add_(noise)
            elif not 0.1 < parameter.std() < 0.4:  # the family ignores initializer_range
                parameter.copy_(noise)
        for path, buffer in model.named_buffers():
            if path.endswith("e_score_correction_bias"):  # of DeepSeek's choice of experts
                buffer.add_(torch.randn_like(buffer) * 0.2)
        _calm(name, model)
    return model


def _calm(name: str, model: nn.Module) -> None:
    """Bring two families to the size of the others, so that one tolerance fits all.

    Nemotron adds 1 to the weights of its norms, which start at 1 nevertheless.
    BitNet's norm behind attention divides by what may be next to nothing.
    """
    if name == "nemotron":
        for path, parameter in model.named_parameters():
            if path.endswith("norm.weight"):
                parameter.sub_(1)
    elif name == "bitnet":
        model.lm_head.weight.mul_(0.4)


def _is_norm(path: str) -> bool:
    return any("norm" in part or part.startswith("ln_") for part in path.split("."))
