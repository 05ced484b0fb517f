"""Check an authors' file against its base model, and write it as a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.checkpoint import saving
from skipgpt.checkpoint.folder import refuse_existing
from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.checkpoint.tensors import load_routers
from skipgpt.config import Budget, LoraStage, RouterConfig, check_budget, check_sparsity
from skipgpt.convert.authors_file import AuthorsFile, read_authors_file, router_keys
from skipgpt.errors import CheckpointError
from skipgpt.model.base import load_base
from skipgpt.model.lora import with_lora
from skipgpt.model.surgery import add_routers
from skipgpt.system.folder_lock import writing_to
from skipgpt.system.stopping import NOTHING_KEPT, stoppable

_SHOWN = 3


def convert(
    path: str | Path,
    base: str,
    out: str | Path,
    *,
    lora: str | Path | None = None,
    lora_alpha: int = 32,
    target_sparsity: float = 0.25,
    budget: Budget = "modules",
    overwrite: bool = False,
) -> CheckpointInfo:
    """Write a checkpoint from the authors' file, uncalibrated: its threshold is 0.

    Args:
        path: the authors' file with the routers, and possibly LoRA and the base weights.
        base: hub id, folder or GGUF file of the base model that the routers were trained on.
        out: the checkpoint's folder.
        lora: the file with LoRA, where that is a second file, as the fork writes it.
        lora_alpha: LoRA's updates are multiplied by alpha / rank; 32 is the authors'.
        target_sparsity: what the routers were trained for; 0.25 is the authors'.
        budget: what the target counts; modules are the authors'.
        overwrite: replace a checkpoint that is already there.

    Raises:
        CheckpointError: the file cannot be read, its keys are not those of routers for this base,
            the base weights in it are not those of `base`, or `out` holds a checkpoint.

    Example:
        convert("router.pth", "meta-llama/Llama-3.1-8B", "out/llama-paper")
    """
    check_sparsity(target_sparsity, "target_sparsity", check_budget(budget))
    with stoppable(f"converting {path}", lambda: NOTHING_KEPT), writing_to(Path(out)):
        if not overwrite:
            refuse_existing(Path(out))
        files = [path] if lora is None else [path, lora]
        source = AuthorsFile.of(*map(read_authors_file, files))
        # Neither routers nor the fingerprint depend on the dtype; only float16 weights would be
        # compared with a base that was rounded twice.
        half = any(tensor.dtype == torch.float16 for tensor in source.tensors.values())
        base_model, tokenizer = load_base(base, dtype="float32" if half else "bfloat16")
        doing = f"converting {path} for the base {base!r}"
        _check_keys(source, base_model, doing)
        _check_base_weights(source, base_model.state_dict(), doing)

        model = add_routers(base_model, RouterConfig(head=source.head))
        names = router_keys(source.head, *_sizes(model))
        load_routers(model, {n: source.tensors[k] for k, (n, _) in names.items()}, path)
        if source.lora:
            model = _with_lora(model, source, lora_alpha)
        info = saving.describe(
            model,
            base,
            tokenizer=tokenizer,
            recipe="paper",
            stages=("router", "lora") if source.lora else ("router",),
            target_sparsity=target_sparsity,
            budget=budget,
        )
        return saving.save(model, out, info, overwrite=overwrite)


def _sizes(model: Any) -> tuple[int, int]:
    config = model.config.get_text_config()
    return config.num_hidden_layers, config.hidden_size


def _check_keys(source: AuthorsFile, model: nn.Module, doing: str) -> None:
    """Check every key and shape of the file against the base."""
    reader = r"model\.layers\.(\d+)\.router_\w+\.%s\.weight"
    reader %= "hidden_layer" if source.head == "mlp" else "weight_predictor"
    matches = (re.fullmatch(reader, k) for k, tensor in source.tensors.items() if tensor.ndim == 2)
    found = {match[0]: int(match[1]) for match in matches if match}
    if not found:
        raise CheckpointError(
            doing,
            got=f"{len(source.tensors)} tensors, but no router of the {source.head} head",
            expected="keys like model.layers.0.router_attention.weight_predictor.weight",
            todo="a file that holds only LoRA goes beside the routers: --lora (lora=)",
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
    source: AuthorsFile, weights: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the expected shapes: each target has LoRA in every layer, at the most common rank."""
    shapes: dict[str, tuple[int, ...]] = {}
    targets, rank = source.targets, source.rank
    for name, shape in weights.items():
        module = name.removesuffix(".weight")
        if name.startswith("model.layers.") and module.split(".")[-1] in targets:
            shapes[f"{module}.lora_A.weight"] = (rank, shape[1])
            shapes[f"{module}.lora_B.weight"] = (shape[0], rank)
    return shapes


def _check_base_weights(source: AuthorsFile, weights: dict[str, Tensor], doing: str) -> None:
    """Raise if base weights differ: on other weights routers give nonsense without an error."""
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


def _with_lora(model: nn.Module, source: AuthorsFile, alpha: int) -> Any:
    wrapped = with_lora(model, LoraStage(rank=source.rank, alpha=alpha, targets=source.targets))
    for key, tensor in source.lora.items():
        name = key.removesuffix("weight") + "default.weight"
        wrapped.get_parameter(f"base_model.model.{name}").data.copy_(tensor)
    return wrapped
