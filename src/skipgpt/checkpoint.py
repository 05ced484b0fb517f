"""The checkpoint: a small folder that turns a base model into a SkipGPT model.

    skipgpt_config.json   what it is; names the base model and the digests of the files below
    routers.safetensors   layers.3.attn_router.weight …, and stand-ins where there are any
    lora/                 plain PEFT adapter, absent before stage `lora`
    README.md             model card

Each file is written under a temporary name and renamed into place, the config last: a failure puts
the old files back, and a kill between two renames is found by the digests. Loading is strict.
docs/checkpoint.md has every field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.atomic import files_below, staged, to_json
from skipgpt.checkpoint_info import (
    FORMAT_VERSION,
    LORA,
    CheckpointInfo,
    check_keep,
    has_adapter,
    model_card,
)
from skipgpt.config import check_sparsity
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.model.base import base_location, load_base
from skipgpt.model.base import fingerprint as fingerprint_of
from skipgpt.model.int8 import check_loaded_as, is_int8, quantize_int8
from skipgpt.model.names import kind_of
from skipgpt.model.quantized import check_quantization, quantization_of
from skipgpt.model.surgery import add_routers, router_state_dict
from skipgpt.model.trace import routing_state, set_sparsity, within_reach
from skipgpt.pieces import whole
from skipgpt.routing.calibration import CalibrationCurve
from skipgpt.settings import from_dict

CONFIG, ROUTERS = "skipgpt_config.json", "routers.safetensors"


def describe(
    model: nn.Module, base: str, *, fingerprint: str | None = None, **facts: Any
) -> CheckpointInfo:
    """The info of a routed model; what can be read off the model is: all but the `facts`.

    Args:
        model: with routers.
        base: hub id or folder of its base model.
        fingerprint: of the base, where it is known; that takes reading all of its weights.
        facts: other fields of the info.

    Raises:
        ConfigError: the model is int8, which is how a checkpoint is run and not what it is.
    """
    if is_int8(model):
        raise ConfigError(
            "describing a model for its checkpoint",
            got="one that is quantised to int8",
            expected="the base as the routers were trained on it",
            todo="save it before quantising",
        )
    state = routing_state(model)
    points = state.curve.points if state.curve else None
    curve = None if points is None else tuple((s, t if abs(t) < 1e30 else None) for s, t in points)
    location = base if base == "nano" else base_location(base)
    kind = quantization_of(model)
    return CheckpointInfo(
        location,
        fingerprint or fingerprint_of(model),
        state.config,
        quantization=kind,
        curve=curve,
        **facts,
    )


def save(
    model: nn.Module, folder: str | Path, info: CheckpointInfo, *, overwrite: bool = False
) -> CheckpointInfo:
    """Write a checkpoint: routers, the LoRA adapter if the model has one, and what they are.

    Args:
        model: a routed model, wrapped by PEFT or not.
        folder: made if absent.
        info: from `describe`.
        overwrite: replace a checkpoint that is already there.

    Returns:
        The info with the digests of the files.

    Raises:
        CheckpointError: a checkpoint is there already, or the disk refuses; then whatever was
            there before is untouched.
    """
    return write(model, Path(folder), info, trained_tensors(model), overwrite=overwrite)


def trained_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a checkpoint holds of routers and stand-ins, and of LoRA, each in one piece on a CPU.

    Every process takes part where the model lies in pieces.
    """
    lora = {name: p for name, p in model.named_parameters() if kind_of(name) == "lora"}
    routing, adapter = (
        {name: whole(tensor).cpu().contiguous() for name, tensor in named.items()}
        for named in (router_state_dict(model), lora)
    )
    return routing, adapter


def write(
    model: nn.Module,
    folder: Path,
    info: CheckpointInfo,
    tensors: tuple[dict[str, Tensor], dict[str, Tensor]],
    *,
    overwrite: bool = False,
) -> CheckpointInfo:
    """The part of `save` that one process does: `tensors` are those of `trained_tensors`."""
    from safetensors.torch import save_file

    routing, adapter = tensors
    if not overwrite:
        refuse_existing(folder)
    with staged(folder, last=CONFIG) as stage:
        save_file(routing, stage / ROUTERS)
        if hasattr(model, "peft_config"):
            _save_adapter(model, adapter, stage / LORA)
        files = {
            str(p.relative_to(stage)): _digest(p) for p in files_below(stage) if p.suffix != ".md"
        }
        info = dataclasses.replace(info, files=files)
        (stage / "README.md").write_text(model_card(info), encoding="utf-8")
        (stage / CONFIG).write_text(to_json(dataclasses.asdict(info)), encoding="utf-8")
    if not has_adapter(info):
        shutil.rmtree(folder / LORA, ignore_errors=True)
    return info


def load(
    folder: str | Path,
    *,
    sparsity: float | None = None,
    base: str | None = None,
    merge: bool = False,
    trainable: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str | None = None,
) -> tuple[Any, Any]:
    """A checkpoint's model, in evaluation mode and execution `auto`, and its tokenizer.

    Args:
        folder: a checkpoint folder, or a hub id of one.
        sparsity: share of modules to skip; the trained target where None.
        base: where the base model lies, if not where the checkpoint says.
        merge: fold LoRA into the base weights, which saves its overhead; not into quantised
            ones, which that would round once more and so move every logit.
        trainable: leave LoRA parameters trainable.
        device: where to put the model.
        dtype: of the base model; routers are always float32. A base is quantised as it was
            when the routers were trained.
        quantize: `int8` holds linear layers in 8 bits from now on, for speed on a CPU; needs
            `merge` where there is LoRA. The checkpoint is what it was.

    Raises:
        CheckpointError: files are missing or damaged, keys do not match, or the base model is
            another one than the checkpoint was made from.
        ConfigError: the sparsity is outside 0 to 0.95, the checkpoint is not calibrated, or the
            model cannot be quantised so.
        UnsupportedModelError: likewise, for the family that it is of.
        MissingExtraError: the base is quantised and the extra `quantize` is not installed.

    Example:
        model, tokenizer = skipgpt.load("out/llama-25", sparsity=0.4)
    """
    check_loaded_as(quantize)
    folder = local_folder(folder)
    info = read_info(folder)
    verify_files(folder, info)
    name = base or info.base
    kind = info.quantization
    model, tokenizer = load_base(
        name, revision=info.revision, device=device, dtype=dtype, quantize=kind
    )
    if (found := fingerprint_of(model)) != info.fingerprint:
        raise CheckpointError(
            f"loading the checkpoint {folder}",
            got=f"base model {name!r} with fingerprint {found}{_held(quantization_of(model))}",
            expected=f"fingerprint {info.fingerprint}{_held(kind)}, the weights the routers were "
            "trained on",
            todo="pass the right base model with base= (--base)"
            + (" and the dtype of training with dtype= (--dtype)" if kind else ""),
        )
    add_routers(model, info.router)
    load_routers(model, _read_tensors(folder / ROUTERS), folder)
    state = routing_state(model)
    if info.curve is not None:
        points = tuple((s, float("-inf") if t is None else t) for s, t in info.curve)
        state.curve = CalibrationCurve(points)
        own = within_reach(model, info.target_sparsity)
        set_sparsity(model, own if sparsity is None else sparsity)
    elif sparsity is not None:
        set_sparsity(model, sparsity)
    if has_adapter(info):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder / LORA), is_trainable=trainable)
        model = model.merge_and_unload() if merge and kind is None else model
    model = model.eval()
    return (quantize_int8(model) if quantize else model), tokenizer


def load_routers(model: nn.Module, tensors: dict[str, Tensor], source: object) -> None:
    """Copy router weights into a model, strictly.

    Args:
        model: with routers.
        tensors: under the keys of a checkpoint.
        source: named in the message.

    Raises:
        CheckpointError: one message with every missing, unexpected and mis-shaped key.
    """
    wanted = router_state_dict(model)
    problems = [f"missing {key}" for key in sorted(wanted.keys() - tensors.keys())]
    problems += [f"unexpected {key}" for key in sorted(tensors.keys() - wanted.keys())]
    problems += [
        f"{key} of shape {list(tensors[key].shape)}, not {list(wanted[key].shape)}"
        for key in sorted(wanted.keys() & tensors.keys())
        if tensors[key].shape != wanted[key].shape
    ]
    if problems:
        raise CheckpointError(
            f"loading routers from {source}",
            got="; ".join(problems),
            expected=f"the {len(wanted)} router tensors of this base model",
        )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])


def read_info(folder: str | Path) -> CheckpointInfo:
    """What a checkpoint (a folder or a hub id) is, from its config alone.

    Raises:
        CheckpointError: there is none, it is no JSON, or of a newer format.
    """
    path = local_folder(folder) / CONFIG
    doing = f"reading the checkpoint {folder}"
    if not path.is_file():
        raise CheckpointError(
            doing, got=f"no {CONFIG} there", expected="a folder made by `skipgpt train`"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(doing, got=f"a damaged {CONFIG} ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            doing,
            got=f"format version {version}",
            expected=str(FORMAT_VERSION),
            todo="upgrade skipgpt",
        )
    try:
        info = from_dict(CheckpointInfo, values)
        check_sparsity(info.target_sparsity, "target_sparsity")
        check_quantization(info.quantization)
        check_keep(info.keep)
    except ConfigError as error:
        raise CheckpointError(doing, got=f"a damaged {CONFIG} ({error})") from error
    return info


def verify_files(folder: Path, info: CheckpointInfo) -> None:
    """Compare every file with its recorded digest.

    Raises:
        CheckpointError: one message with every missing and every damaged file.
    """
    problems = []
    for name, digest in info.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif _digest(path) != digest:
            problems.append(f"{name} is damaged or was changed ({path.stat().st_size} bytes)")
    if problems:
        raise CheckpointError(
            f"verifying the checkpoint {folder}",
            got="; ".join(problems),
            expected=f"the files as {CONFIG} records them",
            todo="copy the checkpoint again, or train it again",
        )


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder on disk holds a checkpoint."""
    return (Path(folder) / CONFIG).is_file()


def refuse_existing(folder: Path) -> None:
    """Raise if a checkpoint lies there.

    Raises:
        CheckpointError: it does.
    """
    if (folder / CONFIG).exists():
        raise CheckpointError(
            f"writing to {folder}",
            got="a folder that already holds a checkpoint",
            expected="an empty or new folder",
            todo="pass --overwrite (overwrite=True) to replace it",
        )


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a checkpoint without its resume state; returns the address of the commit."""
    from huggingface_hub import HfApi

    verify_files(Path(folder), read_info(folder))
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, ignore_patterns=["trainer/*", ".*/*"]
        )
    )


def _held(kind: str | None) -> str:
    return f" in {kind}" if kind else ""


def _save_adapter(model: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    model.save_pretrained(folder, state_dict=tensors)
    (folder / "README.md").unlink(missing_ok=True)


def local_folder(folder: str | Path) -> Path:
    """The folder itself, or the download of a hub id."""
    if Path(folder).is_dir() or str(folder).count("/") != 1:
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder)))
    except Exception as error:  # the hub client raises many kinds
        raise CheckpointError(
            f"loading the checkpoint {folder}",
            got=f"no such folder, and from the hub {type(error).__name__}",
            expected="a folder made by `skipgpt train`, or a hub id",
        ) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"reading {path}", got=str(error)) from error
    return tensors


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
