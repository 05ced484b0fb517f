"""Loading weights with transformers, strictly: by default it initialises missing ones at random.

Unused tensors in files of a family are known from transformers' own lists, such as those of tied
heads and rotary buffers, and from `unread` in the family's row.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.errors import UnsupportedModelError
from skipgpt.model.families.table import FAMILIES, MERGED_PREFIX

_SHOWN = 3


def load_strictly(
    from_pretrained: Callable[..., Any],
    location: str | Path,
    doing: str,
    *arguments: Any,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Load a model, all weights of which must be read, and return it with the loading info.

    `from_pretrained` is that of an auto class or a model class; further arguments are for it.

    Raises:
        UnsupportedModelError: one message with the tensors that are missing, unknown or of
            another shape.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # named below
    try:
        model, found = from_pretrained(location, *arguments, **options)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        # Where transformers merges tensors as it loads, it names neither a missing nor an odd one.
        shapes = _shapes_in(Path(location))
        refuse_tensors(doing, misfits=_odd_ones(shapes), cause=error)
        refuse_tensors(doing, missing=_gaps(shapes), cause=error)
        raise
    refuse_tensors(
        doing,
        missing=found["missing_keys"],
        misfits={name: (have, want) for name, have, want in found["mismatched_keys"]}
        | _quantized_misfits(model),
        unknown=[name for name in found["unexpected_keys"] if not _is_unread(model, name)],
    )
    return model, found


def refuse_tensors(
    doing: str,
    *,
    missing: Iterable[str] = (),
    misfits: dict[str, tuple[Any, Any]] | None = None,
    unknown: Iterable[str] = (),
    what: str = "weights",
    todo: str = "copy or download the model again; if its config.json was changed, undo that",
    cause: Exception | None = None,
) -> None:
    """Raise if tensors are missing in the files (`what`), of another shape, or unknown.

    Misfits are the files' and the model's shapes by name; `cause` is the error that revealed them.

    Raises:
        UnsupportedModelError: there are such tensors.
    """
    shapes = [
        f"{name} ({list(have)}, not {list(want)})"
        for name, (have, want) in sorted((misfits or {}).items())
    ]
    named = (
        ("without the tensors", sorted(missing)),
        ("with another shape of the tensors", shapes),
        ("with the unknown tensors", sorted(unknown)),
    )
    problems = [f"{how} {_first(names)}" for how, names in named if names]
    if problems:
        raise UnsupportedModelError(
            doing,
            got=f"{what} {' and '.join(problems)}",
            expected="one for each parameter of the transformers model, of its shape, and no "
            "others",
            todo=todo,
        ) from cause


def _first(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_unread(model: Any, name: str) -> bool:
    family = FAMILIES.get(model.config.model_type.removeprefix(MERGED_PREFIX))
    return family is not None and any(re.search(pattern, name) for pattern in family.unread)


def _quantized_misfits(model: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Weights and scales of bitsandbytes that do not fit their layer, with both shapes.

    transformers does not compare the shapes of what it quantises.
    """
    misfits: dict[str, tuple[Any, Any]] = {}
    if not getattr(model, "is_quantized", False):
        return misfits
    module: Any
    for path, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        scales = getattr(weight, "SCB", None)
        if type(weight).__name__ not in ("Int8Params", "Params4bit"):
            continue
        if scales is not None and scales.numel() != module.out_features:
            misfits[f"{path}.SCB"] = (tuple(scales.shape), (module.out_features,))
        wanted = (module.out_features, module.in_features)
        found = tuple(weight.shape)
        if (state := getattr(weight, "quant_state", None)) is not None:
            held = 2 * weight.numel() * weight.element_size()  # four bits each
            found = tuple(state.shape)
            found = found if math.prod(found) == held else (held,)
            blocks = -(-held // state.blocksize)
            if state.absmax.numel() != blocks:
                misfits[f"{path}.weight.absmax"] = (tuple(state.absmax.shape), (blocks,))
        if found != wanted:
            misfits[f"{path}.weight"] = (found, wanted)
    return misfits


def _shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors in the files of a folder with their shapes; none for a hub id."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for path in [] if files else folder.glob("pytorch_model*.bin"):
            held = torch.load(path, map_location="meta", mmap=True, weights_only=True)
            found |= {n: tuple(each.shape) for n, each in held.items() if isinstance(each, Tensor)}
    except (SafetensorError, OSError, RuntimeError, UnpicklingError):
        return {}
    return found


def _odd_ones(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[Any, Any]]:
    """Tensors of another shape than most of the same name in other layers and experts."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        alike[re.sub(r"\.\d+", ".*", name)].append(name)
    odd: dict[str, tuple[Any, Any]] = {}
    for names in alike.values():
        usual, count = Counter(shapes[name] for name in names).most_common(1)[0]
        if count > len(names) / 2:
            odd |= {name: (shapes[name], usual) for name in names if shapes[name] != usual}
    return odd


def _gaps(names: Iterable[str]) -> set[str]:
    """The tensors that most layers, or most experts, have and some lack."""
    kinds: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if numbered := re.match(r"(.*\.\d+)\.(.+)", name):
            place, part = numbered.groups()
            kinds[re.sub(r"\.\d+", ".*", place)][place].add(part)
    gaps: set[str] = set()
    for parts in kinds.values():
        counts = Counter(part for having in parts.values() for part in having)
        usual = {part for part, count in counts.items() if count > len(parts) / 2}
        for place, having in parts.items():
            if having <= usual:  # else it is a layer of another kind
                gaps |= {f"{place}.{part}" for part in usual - having}
    return gaps
