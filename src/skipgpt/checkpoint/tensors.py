"""Gathers a checkpoint's trained tensors (routers, stand-ins, LoRA), and loads them strictly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.checkpoint.folder import read_tensors
from skipgpt.errors import CheckpointError
from skipgpt.model.families.parameter_names import kind_of
from skipgpt.model.lora import with_saved_lora
from skipgpt.model.surgery import router_state_dict
from skipgpt.system.sharded import full_tensor

_ADAPTER = "adapter_model.safetensors"


def trained_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The whole tensors of routers and stand-ins, and those of LoRA, on a CPU.

    Every process has to call it if the model is sharded.
    """
    lora = {name: p for name, p in model.named_parameters() if kind_of(name) == "lora"}
    routing, adapter = (
        {name: full_tensor(tensor).cpu().contiguous() for name, tensor in named.items()}
        for named in (router_state_dict(model), lora)
    )
    return routing, adapter


def load_routers(model: nn.Module, tensors: dict[str, Tensor], source: object) -> None:
    """Copy router weights, under the keys of a checkpoint, into a model, strictly.

    One CheckpointError tells every missing, unexpected and mis-shaped key.
    """
    wanted = router_state_dict(model)
    _refuse_differences(wanted, tensors, "router", f"loading routers from {source}")
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])


def load_adapter(model: nn.Module, folder: Path, *, trainable: bool = False) -> Any:
    """Put the LoRA adapter in a folder around a routed model, as strictly as `load_routers`."""
    doing, tensors = f"loading LoRA from {folder}", read_tensors(folder / _ADAPTER)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            model = with_saved_lora(model, folder, trainable=trainable)
    except RuntimeError as error:  # of torch, with every mis-shaped key
        got = "; ".join(line.strip() for line in str(error).splitlines()[1:] or [str(error)])
        raise CheckpointError(doing, got=got, expected="LoRA for this base model") from error
    wanted = {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if kind_of(name) == "lora"
    }
    _refuse_differences(wanted, tensors, "LoRA", doing)
    return model


def _refuse_differences(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str, doing: str
) -> None:
    problems = [f"missing {key}" for key in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {key}" for key in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{key} of shape {list(found[key].shape)}, not {list(wanted[key].shape)}"
        for key in sorted(wanted.keys() & found.keys())
        if found[key].shape != wanted[key].shape
    ]
    if problems:
        raise CheckpointError(
            doing,
            got="; ".join(problems),
            expected=f"the {len(wanted)} {what} tensors of this base model",
        )
