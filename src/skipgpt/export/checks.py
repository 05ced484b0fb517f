"""What every export asks: a free target folder, weights that can be merged into, a tied head."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.errors import CheckpointError
from skipgpt.model.loading.folder import Kind, describe_kind, kind_of_model
from skipgpt.system.folder_lock import writing_to
from skipgpt.system.progress import advancing
from skipgpt.system.stopping import NOTHING_KEPT, stoppable

P = ParamSpec("P")
T = TypeVar("T")


def exporting(export: Callable[P, T]) -> Callable[P, T]:
    """Decorate an export with progress, stopping, and a lock on the folder that it writes."""

    @functools.wraps(export)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        given = inspect.signature(export).bind(*args, **kwargs).arguments
        doing, out = f"exporting {given['folder']}", Path(given["out"])
        with stoppable(doing, lambda: NOTHING_KEPT), advancing(doing), writing_to(out):
            return export(*args, **kwargs)

    return alone


def head_is_tied(model: Any) -> bool:
    """Whether the head reads the embedding's weight; a file may hold another, whatever it says."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(head.weight is embedding.weight)


OF_ANOTHER_EXPORT = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "modeling_skipgpt.py",
    "configuration_decilm.py",
    "static_export.json",
    "chat_template.jinja",
)
"""Files of an older export that would be read beside or instead of those of the new one."""


TRAINED: tuple[Kind, ...] = ("checkpoint", "adapter", "run")
"""What a folder may hold that no export writes over."""


def exportable(folder: str | Path, out: Path, overwrite: bool) -> CheckpointInfo:
    """Return the info of a checkpoint after checking that it can be exported to `out`.

    Raises:
        CheckpointError: a model or a file is there already, the base is quantised, or there is
            no checkpoint.
    """
    if kind_of_model(out) in TRAINED:
        raise CheckpointError(
            f"writing to {out}",
            got=describe_kind(out),
            expected="an empty or new folder; what was trained is never replaced",
            todo="name another folder",
        )
    if (out / "config.json").exists() and not overwrite:
        raise CheckpointError(
            f"writing to {out}",
            got="a folder that already holds a model",
            expected="an empty or new folder",
            todo="pass --overwrite (overwrite=True) to replace it",
        )
    info = read_info(folder)
    if info.quantization:
        raise CheckpointError(
            f"exporting the checkpoint {folder}",
            got=f"a base held in {info.quantization}",
            expected="weights that LoRA can be merged into; quantised ones would be rounded once "
            "more, which moves every logit",
            todo="use the checkpoint as it is: skipgpt.load quantises its base again",
        )
    return info
