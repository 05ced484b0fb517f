"""Read the router files of the paper's authors.

The training code and its fork write state dicts with different key names; all are read:

    model.layers.3.router_attention.weight_predictor.weight     the fork's linear head
    model.layers.3.router_mlp.hidden_layer.weight               the two-layer head of training
    base_model.model.model.layers.3 …                           in LoRA runs; also module. and such
    model.layers.3.block.self_attn.q_proj.lora_A.default.weight
    model.layers.3.block.self_attn.q_proj.base_layer.weight     the base, in full state dicts

Both routers of a layer read its raw input, and a module runs where the first logit is the larger:
our threshold 0. LoRA's alpha is in none of these files and has to be given.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any, Literal

import torch
from torch import Tensor

from skipgpt.errors import CheckpointError, in_brief

Head = Literal["linear", "mlp"]
_PREFIX = re.compile(r"(?:module\.|_orig_mod\.|base_model\.model\.)*")
_LAYER = re.compile(r"(?<=layers\.)\d+")
_LORA = re.compile(r"model\.layers\.\d+\.\S+\.lora_[AB]\.weight")


def read_authors_file(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pth`, `.pt`, `.bin` or `.safetensors` file, executing nothing.

    Raises:
        CheckpointError: the file is absent, damaged, or holds more than tensors.
    """
    doing, expected = f"reading the authors' file {path}", "a state dict: names and tensors only"
    try:
        values = _load(Path(path))
    except Exception as error:  # a damaged pickle can raise anything
        # torch's own message advises to load the file unsafely, so it is not passed on.
        got = "a file that holds more than tensors, or none; it was not executed"
        if not isinstance(error, pickle.UnpicklingError):
            got = f"a file that cannot be read ({in_brief(error)})"
        raise CheckpointError(doing, got=got, expected=expected) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict) or not values:
        got = "an empty dict" if values == {} else f"a {type(values).__name__}"
        raise CheckpointError(doing, got=got, expected=expected)
    if others := [key for key, value in values.items() if not isinstance(value, Tensor)]:
        got = f"{len(others)} of {len(values)} entries that are no tensors, first {others[0]!r}"
        raise CheckpointError(doing, got=got, expected=expected)
    return values


def router_keys(head: Head, layers: int, hidden: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Map each of the authors' router keys to our key and the shape of the tensor."""
    parts = {"weight_predictor": ("", 2, hidden)}
    if head == "mlp":
        inner = hidden // 4
        parts = {"hidden_layer": ("up.", inner, hidden), "weight_predictor": ("out.", 2, inner)}
    return {
        f"model.layers.{n}.router_{theirs}.{part}.{kind}": (
            f"layers.{n}.{ours}.{name}{kind}",
            shape,
        )
        for n in range(layers)
        for theirs, ours in (("attention", "attn_router"), ("mlp", "mlp_router"))
        for part, (name, rows, columns) in parts.items()
        for kind, shape in (("weight", (rows, columns)), ("bias", (rows,)))
    }


@dataclass(frozen=True)
class AuthorsFile:
    """The tensors of a file under normalised keys.

    Attributes:
        tensors: by key, without wrappers' prefixes.
        spelled: how the file spells each key.
        repeated: spellings that repeat an earlier key.
    """

    tensors: dict[str, Tensor]
    spelled: dict[str, str]
    repeated: list[str]

    @classmethod
    def of(cls, *files: dict[str, Tensor]) -> AuthorsFile:
        """Collect the tensors of one file, or of two that hold routers and LoRA."""
        source = cls({}, {}, [])
        for spelled, tensor in (item for file in files for item in file.items()):
            key = _plain(spelled)
            if key in source.tensors:
                source.repeated.append(spelled)
            elif not key.endswith("rotary_emb.inv_freq"):  # a constant of older transformers
                source.tensors[key], source.spelled[key] = tensor, spelled
        return source

    @property
    def head(self) -> Head:
        """Which router head the file holds."""
        return "mlp" if any(".hidden_layer." in key for key in self.tensors) else "linear"

    @property
    def lora(self) -> dict[str, Tensor]:
        """The update matrices of LoRA."""
        named = self.tensors.items()
        return {key: each for key, each in named if _LORA.fullmatch(key) and each.ndim == 2}

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the linear layers that LoRA updates."""
        return tuple(sorted({key.split(".")[-3] for key in self.lora}))

    @property
    def rank(self) -> int:
        """The rank that most update matrices have."""
        return mode(t.shape[0 if ".lora_A." in key else -1] for key, t in self.lora.items())

    def spelling(self, key: str) -> str:
        """Spell a key as the file does, or as it does the same key of another layer."""
        for other, spelled in self.spelled.items():
            if _LAYER.sub("", other) == _LAYER.sub("", key):
                return _LAYER.sub(_LAYER.findall(key)[0], spelled)
        prefix = _PREFIX.match(next(iter(self.spelled.values())))
        return (prefix[0] if prefix else "") + key


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of any pickle protocol but its own
        return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _plain(key: str) -> str:
    """Strip from a key what DDP, torch.compile, PEFT and the authors' wrapper add."""
    key = _PREFIX.sub("", key, count=1).replace("._orig_mod.", ".").replace(".base_layer.", ".")
    key = re.sub(r"^(model\.layers\.\d+)\.block\.", r"\1.", key)
    return re.sub(r"(\.lora_[AB])\.default\.weight$", r"\1.weight", key)
