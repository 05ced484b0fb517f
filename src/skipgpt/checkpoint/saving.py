"""The checkpoint: a small folder that turns a base model into a SkipGPT model.

    skipgpt_config.json   what it is; names the base model and the digests of the files below
    routers.safetensors   layers.3.attn_router.weight …, and stand-ins where there are any
    lora/                 plain PEFT adapter, absent before stage `lora`
    README.md             model card

Each file is written under a temporary name and renamed into place, the config last: a failure puts
the old files back, and the digests reveal a kill between two renames. Loading is strict.
docs/checkpoint.md has every field.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skipgpt.checkpoint.folder import ROUTERS, digest_of, refuse_existing
from skipgpt.checkpoint.info import LORA, CheckpointInfo, has_adapter, model_card
from skipgpt.checkpoint.tensors import trained_tensors
from skipgpt.errors import ConfigError
from skipgpt.model.base import base_location
from skipgpt.model.families.table import MERGED_PREFIX
from skipgpt.model.loading.bitsandbytes import quantization_of
from skipgpt.model.loading.fingerprint import fingerprint as fingerprint_of
from skipgpt.model.loading.fingerprint import is_of_same_weights
from skipgpt.model.loading.folder import CONFIG
from skipgpt.model.loading.identity import settings_of
from skipgpt.model.loading.int8 import is_int8
from skipgpt.model.state import routing_state
from skipgpt.system.atomic import files_below, staged, to_json
from skipgpt.system.folder_lock import writing_to


def describe(
    model: nn.Module,
    base: str,
    *,
    fingerprint: str | None = None,
    tokenizer: Any = None,
    **facts: Any,
) -> CheckpointInfo:
    """Return the info of a routed model, read off the model; `facts` are its other fields.

    `base` is a hub id, folder or GGUF file. Without `fingerprint`, all weights of the base are read
    to compute it. Loading refuses a tokenizer other than `tokenizer`.

    Raises:
        ConfigError: the model is int8, which is a way to run a checkpoint and not to store one.
    """
    if is_int8(model):
        raise ConfigError(
            "describing a model for its checkpoint",
            got="one that is quantised to int8",
            expected="the base as the routers were trained on it",
            todo="save it before quantising",
        )
    state = routing_state(model)
    if state.curves is not None:
        facts = state.curves.to_json() | {"timed": state.curves.timed} | facts
    return CheckpointInfo(
        base if base == "nano" else base_location(base),
        fingerprint or fingerprint_of(model),
        state.config,
        base_settings=settings_of(model, tokenizer),
        quantization=quantization_of(model),
        **facts,
    )


def save(
    model: nn.Module,
    folder: str | Path,
    info: CheckpointInfo | None = None,
    *,
    base: str | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
) -> CheckpointInfo:
    """Write a checkpoint: routers, the LoRA adapter if the model has one, and what they are.

    Args:
        model: a routed model, wrapped by PEFT or not.
        folder: made if absent.
        info: from `describe`; made from the model where None.
        base: hub id, folder or GGUF file of its base model, where there is no `info`; the one that
            transformers loaded it from where None.
        tokenizer: the base's, where there is no `info`; loading will refuse another one.
        overwrite: replace a checkpoint that is already there.

    Returns:
        The info with the digests of the files.

    Raises:
        CheckpointError: a checkpoint is there already, or writing fails; then whatever was there
            before is untouched.
        ConfigError: the model has no routers, or it is unknown where its base model lies.

    Example:
        model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
        skipgpt.add_routers(model)
        skipgpt.save(model, "out/untrained")
    """
    if info is None:
        info = described(model, base, tokenizer)
    with writing_to(Path(folder)):
        return write(model, Path(folder), info, trained_tensors(model), overwrite=overwrite)


def described(model: Any, base: str | None, tokenizer: Any) -> CheckpointInfo:
    """Describe a model from itself, and from the checkpoint that it was loaded from.

    Raises ConfigError if the base is in it, or its weights are no longer those of the base.
    """
    doing, facts = "saving a checkpoint", dict(routing_state(model).facts)
    if str(model.config.model_type).startswith(MERGED_PREFIX):
        raise ConfigError(
            doing,
            got="the model of a merged export, which holds its base",
            expected="a model beside its base",
            todo="call model.save_pretrained, which keeps all of it",
        )
    named = base or facts.pop("base", None) or origin_of(model)
    found, known = fingerprint_of(model), facts.pop("fingerprint", None)
    if known is not None and not is_of_same_weights(found, known):
        raise ConfigError(
            doing,
            got=f"base weights with fingerprint {found}, once loaded with {known}",
            expected="the weights of the base: a checkpoint holds routers and LoRA only",
            todo="load without merge=True, or export the model with skipgpt.export_merged",
        )
    if base is None and not facts and not Path(named).exists():
        facts["revision"] = getattr(model.config, "_commit_hash", None)
    settings = facts.pop("base_settings", None)
    info = describe(model, named, fingerprint=found, tokenizer=tokenizer, **facts)
    if tokenizer is None and settings:
        info = dataclasses.replace(info, base_settings=settings)
    return info


def origin_of(model: Any) -> str:
    """Where transformers loaded a model from; raises ConfigError if it did not."""
    if name := str(getattr(model.config, "_name_or_path", "")):
        return name
    raise ConfigError(
        "saving a checkpoint",
        got="a model that was not loaded from a folder or hub id",
        expected="the base model that the checkpoint refers to",
        todo="pass base=, the folder or hub id of its base model",
    )


def write(
    model: Any,
    folder: Path,
    info: CheckpointInfo,
    tensors: tuple[dict[str, Tensor], dict[str, Tensor]],
    *,
    overwrite: bool = False,
) -> CheckpointInfo:
    """Do the part of `save` that one process does; `tensors` are those of `trained_tensors`."""
    from safetensors.torch import save_file

    routing, adapter = tensors
    if not overwrite:
        refuse_existing(folder)
    with staged(folder, last=CONFIG) as stage:
        save_file(routing, stage / ROUTERS)
        if hasattr(model, "peft_config"):
            # PEFT would look for the base's config to see if embeddings have grown; none are saved.
            model.save_pretrained(stage / LORA, state_dict=adapter, save_embedding_layers=False)
            (stage / LORA / "README.md").unlink(missing_ok=True)  # PEFT's own card
        files = {
            str(p.relative_to(stage)): digest_of(p) for p in files_below(stage) if p.suffix != ".md"
        }
        info = dataclasses.replace(info, files=files)
        (stage / "README.md").write_text(model_card(info), encoding="utf-8", errors="replace")
        (stage / CONFIG).write_text(to_json(dataclasses.asdict(info)), encoding="utf-8")
    if not has_adapter(info):
        shutil.rmtree(folder / LORA, ignore_errors=True)
    return info
