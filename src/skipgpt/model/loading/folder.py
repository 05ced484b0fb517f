"""Which kind of model a name refers to: checkpoint, export, base … decided only here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from skipgpt.errors import CheckpointError, UnsupportedModelError, in_brief
from skipgpt.model.families.table import MERGED_PREFIX
from skipgpt.model.loading.gguf import is_gguf

CONFIG = "skipgpt_config.json"
EMBEDDED = "nano"
CHECK_ID = "check the path; a hub id needs the network, or its files in the cache"
"""What to do where a `remote` name leads to nothing."""

Kind = Literal[
    "embedded", "base", "gguf", "checkpoint", "merged", "engine", "adapter", "run", "other",
    "file", "remote", "absent",
]  # fmt: skip

_SAID: dict[Kind, str] = {
    "embedded": "a base model",
    "base": "a model without routers, as base models and static exports are",
    "gguf": "a GGUF file, a base model",
    "checkpoint": "a checkpoint",
    "merged": "a merged export",
    "engine": "a static export for vLLM",
    "adapter": "a PEFT adapter",
    "run": "a training run that has written no checkpoint yet",
    "other": "a folder without config.json",
    "file": "a file",
    "remote": "no such folder",
    "absent": "no such folder",
}
_BASES = ("embedded", "base", "gguf", "remote")
_INSTEAD: dict[Kind, str] = {
    "checkpoint": "name the base model that it was made from: {base}",
    "merged": "name the base model; `skipgpt train` goes on with the checkpoint that it was "
    "exported from, and `skipgpt serve` and `skipgpt generate` run it as it is",
    "engine": "export it once more without --format vllm",
    "adapter": "merge it into its base with PEFT, and save that with its tokenizer",
    "run": "finish it with `skipgpt train … --resume`",
    "absent": "check the path",
}


def kind_of_model(name: str | Path) -> Kind:
    """The kind of model that a name refers to; `remote` if it may be a hub id.

    A `Path` is never a hub id: it may have been `./out/x`, of which it keeps `out/x`.

    Example:
        >>> kind_of_model("nano"), kind_of_model("meta-llama/Llama-3.1-8B")
        ('embedded', 'remote')
    """
    path = Path(name)
    if str(name) == EMBEDDED:
        return "embedded"
    if is_gguf(path):
        return "gguf"
    if not path.is_dir():
        hub_id = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)
        return "file" if path.exists() else "remote" if hub_id else "absent"
    if (path / CONFIG).is_file():
        return "checkpoint"
    if (path / "adapter_config.json").is_file():  # transformers would load its base unasked
        return "adapter"
    if (path / "config.json").is_file():
        model_type = str(json_of(path / "config.json").get("model_type"))
        kinds: dict[bool, Kind] = {
            model_type.startswith(MERGED_PREFIX): "merged",
            model_type == "nemotron-nas": "engine",
        }
        return kinds.get(True, "base")
    return "run" if (path / "run.json").is_file() else "other"


def not_on_the_hub(error: Exception) -> str:
    """What to say of a `remote` name whose files the hub's client did not give."""
    return f"no such folder, and from the hub {in_brief(error)}"


def describe_kind(name: str | Path) -> str:
    """The kind of model that a name refers to, in words."""
    return _SAID[kind_of_model(name)]


def refuse_unless_base(name: str, doing: str) -> None:
    """Raise an UnsupportedModelError if a name does not refer to a base model.

    It says what the name refers to, and what to name instead.
    """
    kind = kind_of_model(name)
    if kind not in _BASES:
        base = json_of(Path(name) / CONFIG).get("base") if kind == "checkpoint" else None
        raise UnsupportedModelError(
            doing,
            got=_SAID[kind],
            expected="a base model: a hub id, a folder with config.json, weights and tokenizer, a "
            f"GGUF file, or {EMBEDDED!r}",
            todo=_INSTEAD.get(kind, "").format(base=base),
        )


def refuse_if_moved(base: str, config: Path) -> None:
    """Raise an UnsupportedModelError if no base is where a checkpoint's config says."""
    if kind_of_model(base) == "absent" or (is_gguf(base) and not Path(base).is_file()):
        raise UnsupportedModelError(
            f"loading the base model of the checkpoint {config.parent}",
            got=f"nothing at {base}",
            expected="the base model where it lay when the routers were trained",
            todo=f'write where it lies now as "base" into {config}, or name it with --base (base=) '
            "where there is such an option",
        )


def not_a_checkpoint(name: str | Path, doing: str) -> CheckpointError:
    """The error to raise where a checkpoint was expected: it says what is there instead."""
    kind = kind_of_model(name)
    return CheckpointError(
        doing,
        got=f"{_SAID[kind]} (no {CONFIG})",
        expected="a folder made by `skipgpt train`, or a hub id of one",
        todo="name the checkpoint that it was exported from" if kind == "merged" else
        _INSTEAD["run"] if kind == "run" else "",
    )  # fmt: skip


def json_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it cannot be read, so callers check what they need."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
