"""The authors' router files into our checkpoints.

Their training code and its fork write state dicts in several dresses; all of them are read:

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
from torch import Tensor, nn

from skipgpt import checkpoint
from skipgpt.config import LoraStage, RouterConfig, check_sparsity
from skipgpt.errors import CheckpointError
from skipgpt.model.base import load_base
from skipgpt.model.surgery import add_routers

Head = Literal["linear", "mlp"]
_PREFIX = re.compile(r"(?:module\.|_orig_mod\.|base_model\.model\.)*")
_LAYER = re.compile(r"(?<=layers\.)\d+")
_LORA = re.compile(r"model\.layers\.\d+\.\S+\.lora_[AB]\.weight")
_SHOWN = 3


def read_authors_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`, `.pt`, `.bin` or `.safetensors` file; nothing in it is executed.

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
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            got = f"a file that cannot be read ({reason})"
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
    """The authors' router keys, each with ours and the shape of the tensor."""
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


def convert(
    path: str | Path,
    base: str,
    out: str | Path,
    *,
    lora: str | Path | None = None,
    lora_alpha: int = 32,
    revision: str | None = None,
    base_model: Any = None,
    target_sparsity: float = 0.25,
    overwrite: bool = False,
) -> checkpoint.CheckpointInfo:
    """Write a checkpoint from the authors' file. It is not calibrated: its threshold is 0.

    Args:
        path: the authors' file with the routers, and possibly LoRA and the base weights.
        base: hub id or folder of the base model that the routers were trained on.
        out: the checkpoint's folder.
        lora: the file with LoRA, where that is a second file, as the fork leaves it.
        lora_alpha: LoRA's updates are multiplied by alpha / rank; 32 is the authors'.
        revision: of the hub id.
        base_model: the base model, if loaded already; it gets the routers and LoRA in place.
        target_sparsity: what the routers were trained for; 0.25 is the authors'.
        overwrite: replace a checkpoint that is already there.

    Raises:
        CheckpointError: the file cannot be read, its keys are not those of routers for this base,
            the base weights in it are not those of `base`, or `out` holds a checkpoint.

    Example:
        convert("router.pth", "meta-llama/Llama-3.1-8B", "out/llama-paper")
    """
    check_sparsity(target_sparsity, "target_sparsity")
    if not overwrite:
        checkpoint.refuse_existing(Path(out))
    source = _Source.of(*(read_authors_file(file) for file in (path, lora) if file is not None))
    if base_model is None:
        # Neither routers nor the fingerprint depend on the dtype; only float16 weights would be
        # compared with a base that was rounded twice.
        half = any(tensor.dtype == torch.float16 for tensor in source.tensors.values())
        base_model, _ = load_base(base, revision=revision, dtype="float32" if half else "bfloat16")
    doing = f"converting {path} for the base {base!r}"
    _check_keys(source, base_model, doing)
    _check_base_weights(source, base_model.state_dict(), doing)

    model = add_routers(base_model, RouterConfig(head=source.head))
    names = router_keys(source.head, *_sizes(model))
    checkpoint.load_routers(model, {n: source.tensors[k] for k, (n, _) in names.items()}, path)
    if source.lora:
        model = _with_lora(model, source, lora_alpha)
    info = checkpoint.describe(
        model,
        base,
        revision=revision,
        recipe="paper",
        stages=("router", "lora") if source.lora else ("router",),
        target_sparsity=target_sparsity,
    )
    return checkpoint.save(model, out, info, overwrite=overwrite)


@dataclass(frozen=True)
class _Source:
    """A file's tensors under plain keys, how it spells each, and what repeats an earlier one."""

    tensors: dict[str, Tensor]
    spelled: dict[str, str]
    repeated: list[str]

    @classmethod
    def of(cls, *files: dict[str, Tensor]) -> _Source:
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
        return "mlp" if any(".hidden_layer." in key for key in self.tensors) else "linear"

    @property
    def lora(self) -> dict[str, Tensor]:
        named = ((key, tensor) for key, tensor in self.tensors.items() if _LORA.fullmatch(key))
        return {key: tensor for key, tensor in named if tensor.ndim == 2}

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(sorted({key.split(".")[-3] for key in self.lora}))

    @property
    def rank(self) -> int:
        return mode(t.shape[0 if ".lora_A." in key else -1] for key, t in self.lora.items())

    def spelling(self, key: str) -> str:
        """How the file spells a key, or would: like the same key of another layer."""
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
    """The key without what DDP, torch.compile, PEFT and the authors' wrapper put into it."""
    key = _PREFIX.sub("", key, count=1).replace("._orig_mod.", ".").replace(".base_layer.", ".")
    key = re.sub(r"^(model\.layers\.\d+)\.block\.", r"\1.", key)
    return re.sub(r"(\.lora_[AB])\.default\.weight$", r"\1.weight", key)


def _sizes(model: Any) -> tuple[int, int]:
    config = model.config.get_text_config()
    return config.num_hidden_layers, config.hidden_size


def _check_keys(source: _Source, model: nn.Module, doing: str) -> None:
    """Hold every key and shape of the file against the base."""
    reader = r"model\.layers\.(\d+)\.router_\w+\.%s\.weight"
    reader %= "hidden_layer" if source.head == "mlp" else "weight_predictor"
    matches = (re.fullmatch(reader, k) for k, tensor in source.tensors.items() if tensor.ndim == 2)
    found = {match[0]: int(match[1]) for match in matches if match}
    if not found:
        raise CheckpointError(
            doing,
            got=f"{len(source.tensors)} tensors, but no router of the {source.head} head",
            expected="keys like model.layers.0.router_attention.weight_predictor.weight",
            todo="a file that holds only LoRA goes beside the routers, as lora=",
        )
    layers = 1 + max(found.values())
    hidden = mode(source.tensors[key].shape[-1] for key in found)
    if (layers, hidden) != (expected := _sizes(model)):
        raise CheckpointError(
            doing,
            got=f"routers for {layers} layers of hidden size {hidden}",
            expected=f"{expected[0]} layers of hidden size {expected[1]}, as that base has",
            todo="the file is incomplete or was made for another base model",
        )
    weights = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    needed = {key: shape for key, (_, shape) in router_keys(source.head, *expected).items()}
    needed |= _lora_shapes(source, weights) if source.lora else {}
    known = needed | weights
    problems = [f"missing {source.spelling(key)}" for key in needed if key not in source.tensors]
    extra = [source.spelled[key] for key in source.tensors if key not in known]
    problems += [f"unexpected {spelled}" for spelled in extra + source.repeated]
    for key in (key for key in source.tensors if key in known):
        shape, spelled = tuple(source.tensors[key].shape), source.spelled[key]
        if shape != known[key]:
            problems.append(f"{spelled} of shape {list(shape)}, not {list(known[key])}")
        elif key in needed and not source.tensors[key].isfinite().all():
            problems.append(f"{spelled} with values that are not finite")
    if problems:
        expect = f"the {source.head} head for {layers} layers and nothing else"
        raise CheckpointError(doing, got="; ".join(problems), expected=expect)


def _lora_shapes(
    source: _Source, weights: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """LoRA on one kind of module is LoRA on it in every layer, of the rank that most have."""
    shapes: dict[str, tuple[int, ...]] = {}
    targets, rank = source.targets, source.rank
    for name, shape in weights.items():
        module = name.removesuffix(".weight")
        if name.startswith("model.layers.") and module.split(".")[-1] in targets:
            shapes[f"{module}.lora_A.weight"] = (rank, shape[1])
            shapes[f"{module}.lora_B.weight"] = (shape[0], rank)
    return shapes


def _check_base_weights(source: _Source, weights: dict[str, Tensor], doing: str) -> None:
    """Routers on other weights than theirs would give nonsense without an error."""
    compared = [key for key in source.tensors if key in weights]
    wrong = []
    for key in compared:
        found = source.tensors[key]
        # The authors train in bfloat16: a float32 file may differ from the base by its rounding.
        dtype = torch.float16 if found.dtype == torch.float16 else torch.bfloat16
        if not torch.equal(found.to(dtype), weights[key].to("cpu", dtype)):
            wrong.append(source.spelled[key])
    if wrong:
        raise CheckpointError(
            doing,
            got=f"{len(wrong)} of {len(compared)} base weights in the file that differ from that "
            f"base's: {', '.join(wrong[:_SHOWN])}{' …' * (len(wrong) > _SHOWN)}",
            expected="the base model that the routers were trained on",
            todo="name that one as the base (--base)",
        )


def _with_lora(model: nn.Module, source: _Source, alpha: int) -> Any:
    from peft import LoraConfig, get_peft_model

    stage = LoraStage(rank=source.rank, alpha=alpha, targets=source.targets)
    config = LoraConfig(
        r=stage.rank,
        lora_alpha=stage.alpha,
        lora_dropout=stage.dropout,
        target_modules=list(stage.targets),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    for key, tensor in source.lora.items():
        name = key.removesuffix("weight") + "default.weight"
        wrapped.get_parameter(f"base_model.model.{name}").data.copy_(tensor)
    return wrapped
