"""A checkpoint and its base model as one transformers folder that still routes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from skipgpt.checkpoint.loading import load
from skipgpt.config import Budget
from skipgpt.export.checks import OF_ANOTHER_EXPORT, exportable, exporting, head_is_tied
from skipgpt.export.transformers4 import save_tokenizer, write_older_config
from skipgpt.model.auto import auto_classes
from skipgpt.model.families.table import family_of
from skipgpt.model.loading.generation_settings import write_ends
from skipgpt.model.sparsity import clamp_to_curve
from skipgpt.model.state import routing_state
from skipgpt.system.atomic import staged


@exporting
def export_merged(
    folder: str | Path,
    out: str | Path,
    *,
    sparsity: float | None = None,
    budget: Budget | None = None,
    base: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
) -> None:
    """Write base, merged LoRA and routers as a folder for `AutoModelForCausalLM`.

    Args:
        folder: a checkpoint, or a hub id of one.
        out: output folder, created if absent.
        sparsity: default sparsity of `from_pretrained`; the trained target where None.
        budget: what `sparsity` counts; as it was trained where None.
        base: location of the base model, if it has moved.
        overwrite: replace a model that is already there.
        device: where to merge.
        dtype: of the written base weights; routers stay float32.

    Raises:
        CheckpointError: a model is there already, the base is quantised, or loading or writing
            fails.

    Example:
        skipgpt.export_merged("out/llama-25", "out/llama-25-merged")
        skipgpt.register()
        AutoModelForCausalLM.from_pretrained("out/llama-25-merged", sparsity=0.4)
    """
    out = Path(out)
    info = exportable(folder, out, overwrite)
    model, tokenizer = load(
        folder, sparsity=sparsity, budget=budget, base=base, merge=True, device=device, dtype=dtype
    )
    write_ends(model, tokenizer)
    own = clamp_to_curve(model, info.target_sparsity)
    merged = as_auto_model(model, own if sparsity is None else sparsity, budget)
    with staged(out, "config.json", OF_ANOTHER_EXPORT) as stage:
        merged.save_pretrained(stage)
        write_older_config(stage)
        save_tokenizer(tokenizer, stage)


def as_auto_model(model: Any, sparsity: float | None, budget: Budget | None = None) -> Any:
    """Put a routed model's weights into the family's auto class, without copies.

    The sparsity is the default one, if the model is calibrated, in the unit of training where the
    budget is None.
    """
    family = family_of(model)
    config_class, model_class = auto_classes(family.model_type)
    values, curves = model.config.to_dict(), routing_state(model).curves
    for name in ("model_type", "architectures"):
        values.pop(name, None)
    config = config_class(
        router=dataclasses.asdict(routing_state(model).config),
        calibration=None if curves is None else dataclasses.replace(curves, keep_at=()).to_json(),
        sparsity=None if curves is None else sparsity,
        budget=None if curves is None else budget or curves.budget,
        **values | {"tie_word_embeddings": head_is_tied(model)},
    )
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        merged = model_class(config)
    merged.load_state_dict(model.state_dict(), assign=True)
    merged.tie_weights()
    merged.generation_config = model.generation_config
    return merged.eval()
