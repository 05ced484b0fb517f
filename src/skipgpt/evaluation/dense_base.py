"""The dense base model that a loaded checkpoint is measured against."""

from __future__ import annotations

from typing import Any

from torch import nn

from skipgpt.checkpoint.info import CheckpointInfo, has_adapter
from skipgpt.model.base import load_base
from skipgpt.model.surgery import add_routers


def dense_base_of(info: CheckpointInfo, model: nn.Module, where: dict[str, Any]) -> nn.Module:
    """Return the base model without LoRA, with routers that a dense run does not use.

    Args:
        info: the checkpoint's info.
        model: the model loaded from it with `merge=True`; returned itself if it has no LoRA.
            Otherwise LoRA is part of its weights, and the base is loaded a second time.
        where: `base`, `device` and `dtype`, as `skipgpt.load` takes them.

    Raises:
        SkipGPTError: the base model cannot be loaded.

    Example:
        model, _ = skipgpt.load(folder, merge=True)
        skipgpt.perplexity(model, blocks, closeness_to=dense_base_of(read_info(folder), model, {}))
    """
    if not has_adapter(info):
        return model
    kinds = {name: where[name] for name in ("device", "dtype") if name in where}
    name = where.get("base") or info.base
    base, _ = load_base(name, revision=info.revision, quantize=info.quantization, **kinds)
    routed: nn.Module = add_routers(base.eval())
    return routed
