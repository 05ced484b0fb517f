"""The folder of a checkpoint: whether one is there, what it says of itself, whether it is whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from skipgpt.checkpoint.info import FORMAT_VERSION, CheckpointInfo, check_keep, check_keep_at
from skipgpt.config import check_budget, check_sparsity
from skipgpt.config.settings import from_dict
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.model.loading.bitsandbytes import check_quantization
from skipgpt.model.loading.folder import (
    CHECK_ID,
    CONFIG,
    json_of,
    kind_of_model,
    not_a_checkpoint,
    not_on_the_hub,
    refuse_if_moved,
)

ROUTERS = "routers.safetensors"


def read_info(folder: str | Path) -> CheckpointInfo:
    """Read what a checkpoint (a folder or a hub id) is, from its config alone.

    Raises:
        CheckpointError: there is no config, it is no JSON, or its format is newer.
    """
    path = local_folder(folder) / CONFIG
    doing = f"reading the checkpoint {folder}"
    if not path.is_file():
        raise not_a_checkpoint(folder, doing)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(doing, got=f"a damaged {CONFIG} ({error})") from error
    if version not in range(1, FORMAT_VERSION + 1):
        raise CheckpointError(
            doing,
            got=f"format version {version}",
            expected=f"1 to {FORMAT_VERSION}",
            todo="upgrade skipgpt",
        )
    try:
        info = from_dict(CheckpointInfo, _upgrade(values))
        for unit in info.curves:
            check_budget(unit)
        check_sparsity(info.target_sparsity, "target_sparsity", check_budget(info.budget))
        check_quantization(info.quantization)
        check_keep(info.keep)
        check_keep_at(info.keep_at)
    except ConfigError as error:
        raise CheckpointError(doing, got=f"a damaged {CONFIG} ({error})") from error
    return info


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the values of an older format to the current one."""
    if values["format_version"] != 1:
        return values
    others, curve = dict(values), values.get("curve")
    others.pop("curve", None)
    curves = {} if curve is None else {"modules": curve}
    return others | {"curves": curves, "format_version": FORMAT_VERSION}


def own_sparsity(folder: Path) -> float:
    """The sparsity of a checkpoint, or a merged export, if none is asked for."""
    if kind_of_model(folder) == "merged":
        return float(json_of(folder / "config.json").get("sparsity") or 0.0)
    return read_info(folder).target_sparsity


def verify_files(folder: Path, info: CheckpointInfo) -> None:
    """Compare every file with its digest; a CheckpointError names all missing and damaged ones."""
    problems = []
    for name, digest in info.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif digest_of(path) != digest:
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
    return kind_of_model(folder) == "checkpoint"


def base_of(info: CheckpointInfo, folder: str | Path, base: str | None = None) -> str:
    """The name or path of a checkpoint's base model, or `base`, the caller's replacement for it.

    Raises:
        UnsupportedModelError: nothing is where the checkpoint says.
    """
    if base is None:
        refuse_if_moved(info.base, Path(folder) / CONFIG)
    return base or info.base


def refuse_existing(folder: Path) -> None:
    """Raise CheckpointError if a folder holds a checkpoint."""
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
        api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=["trainer/*", ".*"])
    )


def local_folder(folder: str | Path) -> Path:
    """The folder itself, or the download of a hub id."""
    if kind_of_model(folder) != "remote" or "/" not in str(folder):
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder)))
    except Exception as error:  # the hub client raises many kinds
        raise CheckpointError(
            f"loading the checkpoint {folder}",
            got=not_on_the_hub(error),
            expected="a folder made by `skipgpt train`, or a hub id of one",
            todo=CHECK_ID,
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises CheckpointError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"reading {path}", got=str(error)) from error
    return tensors


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
