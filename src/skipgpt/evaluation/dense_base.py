"""The dense base model that a loaded checkpoint is measured against."""

from __future__ import annotations

from torch import nn

from skipgpt.checkpoint.info import CheckpointInfo, has_adapter
from skipgpt.checkpoint.loading import load_base_of
from skipgpt.config import Placement
from skipgpt.model.surgery import add_routers


def dense_base_of(info: CheckpointInfo, model: nn.Module, placement: Placement) -> nn.Module:
    """Return the base model without LoRA, with routers that a dense run does not use.

    A model without LoRA, loaded with `merge=True`, is returned itself. Otherwise LoRA is part of
    its weights, and the base is loaded a second time.

    Raises:
        SkipGPTError: the base model cannot be loaded.

    Example:
        model, _ = skipgpt.load(folder, merge=True)
        base = dense_base_of(read_info(folder), model, Placement())
        skipgpt.perplexity(model, blocks, closeness_to=base)
    """
    if not has_adapter(info):
        return model
    base, _ = load_base_of(info, placement)
    routed: nn.Module = add_routers(base.eval())
    return routed
