"""Loading a checkpoint: strictly, onto the base model that it was made from."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from skipgpt.checkpoint.folder import (
    ROUTERS,
    base_of,
    local_folder,
    read_info,
    read_tensors,
    verify_files,
)
from skipgpt.checkpoint.info import LORA, CheckpointInfo, has_adapter
from skipgpt.checkpoint.tensors import load_adapter, load_routers
from skipgpt.config import Budget, Placement, check_pair
from skipgpt.cost.seconds import with_time
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.model.auto import register
from skipgpt.model.base import load_base, load_merged
from skipgpt.model.families.table import MERGED_PREFIX
from skipgpt.model.loading.bitsandbytes import quantization_of
from skipgpt.model.loading.fingerprint import fingerprint as fingerprint_of
from skipgpt.model.loading.fingerprint import is_of_same_weights
from skipgpt.model.loading.folder import CONFIG, json_of, kind_of_model
from skipgpt.model.loading.identity import refuse_other_settings, settings_of
from skipgpt.model.loading.int8 import check_loaded_as, quantize_int8
from skipgpt.model.lora import merge_lora
from skipgpt.model.sparsity import clamp_to_curve, set_sparsity
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.routing.curve import Curves
from skipgpt.system.hardware import hardware

logger = logging.getLogger("skipgpt")


_KEPT = ("base", "fingerprint", "base_settings", "revision", "recipe", "stages", "target_sparsity")
"""Fields that a model cannot tell of itself when it is saved again."""


def load(
    folder: str | Path,
    *,
    sparsity: float | None = None,
    budget: Budget | None = None,
    base: str | None = None,
    merge: bool = False,
    trainable: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str | None = None,
) -> tuple[Any, Any]:
    """Load a checkpoint's model, in evaluation mode and execution `auto`, and its tokenizer.

    Args:
        folder: a checkpoint folder, a hub id of one, or a merged export.
        sparsity: share to save; the trained target where None.
        budget: what `sparsity` counts: `modules`, `flops` or `time`; as it was trained where None.
        base: where the base model lies, if not where the checkpoint says.
        merge: fold LoRA into the base weights, which saves its overhead; not into quantised ones,
            which would be rounded once more, so that every logit changes. An adapted weight of
            several names, such as a tied head, gets a tensor for each.
        trainable: leave LoRA parameters trainable.
        device: where to put the model.
        dtype: of the base model; routers are always float32. A base is quantised as it was
            when the routers were trained.
        quantize: `int8` quantises the loaded linear layers to 8 bits, for speed on a CPU; needs
            `merge` where there is LoRA. The checkpoint does not change.

    Raises:
        CheckpointError: files are missing or damaged, keys do not match, or the base model is
            another one than the checkpoint was made from, in its weights or its settings.
        ConfigError: the sparsity is outside 0 to 0.95, the checkpoint is not calibrated (in that
            unit), a unit comes without a sparsity, or the model cannot be quantised so.
        UnsupportedModelError: likewise, because of the model's family.
        MissingExtraError: the base is quantised and the extra `quantize` is not installed, or it
            is a GGUF file and the extra `gguf` is not.

    Example:
        model, tokenizer = skipgpt.load("out/llama-25", sparsity=0.4, budget="flops")
    """
    check_loaded_as(quantize)
    check_pair(sparsity, budget)
    folder = local_folder(folder)
    if kind_of_model(folder) == "merged":
        model, tokenizer = _load_merged(folder, base, trainable, device, dtype)
        if sparsity is not None:
            set_sparsity(model, sparsity, budget=budget)
        return (quantize_int8(model) if quantize else model), tokenizer
    info = read_info(folder)
    verify_files(folder, info)
    name = base_of(info, folder, base)
    kind = info.quantization
    model, tokenizer = load_base(
        name, revision=info.revision, device=device, dtype=dtype, quantize=kind
    )
    if not is_of_same_weights(found := fingerprint_of(model), info.fingerprint):
        raise CheckpointError(
            f"loading the checkpoint {folder}",
            got=f"base model {name!r} with fingerprint {found}{_held(quantization_of(model))}",
            expected=f"fingerprint {info.fingerprint}{_held(kind)}, the weights the routers were "
            "trained on",
            todo=(
                f"write the path of the right base model as `base` into {folder / CONFIG}"
                if trainable
                else "pass the right base model with base= (--base)"
            )
            + (" and the dtype of training with dtype= (--dtype)" if kind else ""),
        )
    doing = f"loading the checkpoint {folder} on the base model {name!r}"
    refuse_other_settings(info.base_settings, settings_of(model, tokenizer), doing)
    add_routers(model, info.router)
    routing_state(model).facts = {name: getattr(info, name) for name in _KEPT}
    load_routers(model, read_tensors(folder / ROUTERS), folder)
    state = routing_state(model)
    if (stored := curves_of(info)) is not None:
        state.curves = with_time(model, stored)
        _say_if_timed_elsewhere(state.curves, budget, torch.device(device))
        own = clamp_to_curve(model, info.target_sparsity)
        set_sparsity(model, own if sparsity is None else sparsity, budget=budget)
    elif sparsity is not None:
        set_sparsity(model, sparsity)
    if has_adapter(info):
        model = load_adapter(model, folder / LORA, trainable=trainable)
        model = merge_lora(model) if merge and kind is None else model
    model = model.eval()
    return (quantize_int8(model) if quantize else model), tokenizer


def load_placed(folder: str | Path, placement: Placement, **options: Any) -> tuple[Any, Any]:
    """Load a checkpoint by a placement, with what else `load` takes."""
    return load(folder, **vars(placement), **options)


def load_base_of(info: CheckpointInfo, placement: Placement) -> tuple[Any, Any]:
    """Load the dense base model that a checkpoint was made from, and its tokenizer."""
    return load_base(
        placement.base or info.base,
        revision=info.revision,
        device=placement.device,
        dtype=placement.dtype,
        quantize=info.quantization,
    )


def dense_base_of(info: CheckpointInfo, model: Any, placement: Placement) -> Any:
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
    return add_routers(base.eval())


def _load_merged(
    folder: Path, base: str | None, trainable: bool, device: str, dtype: str
) -> tuple[Any, Any]:
    if base is not None or trainable:
        raise ConfigError(
            f"loading the merged export {folder}",
            got=f"the base model {base!r}" if base is not None else "LoRA to be trained further",
            expected="nothing more, since base and LoRA are merged into it",
            todo="leave out --base (base=)" if base is not None else "load the checkpoint",
        )
    register(json_of(folder / "config.json")["model_type"].removeprefix(MERGED_PREFIX))
    return load_merged(str(folder), device=device, dtype=dtype)


def curves_of(info: CheckpointInfo) -> Curves | None:
    """The calibration curves of a checkpoint; None where it was never calibrated."""
    if not info.curves:
        return None
    return Curves.from_json(dataclasses.asdict(info))


def _say_if_timed_elsewhere(curves: Curves, budget: Budget | None, device: torch.device) -> None:
    """Warn if a sparsity counts seconds that were measured on other hardware than this."""
    here = hardware(device)
    if (budget or curves.budget) != "time" or "time" not in curves.by_budget:
        return
    if curves.hardware.get("device") != here["device"]:
        logger.warning(
            "a sparsity in time counts the seconds of %s, and this is %s; calibrate the checkpoint "
            "here to count those",
            curves.hardware.get("device", "other hardware"),
            here["device"],
        )


def _held(kind: str | None) -> str:
    return f" in {kind}" if kind else ""
