"""Bases whose linear layers hold 8-bit or 4-bit weights, through bitsandbytes.

Routers and LoRA train on top of them in their own precision; no weight of the base changes. Four
behaviours of bitsandbytes do not suit routing and are corrected here:

    8-bit, outliers     columns above a threshold are picked by looking at the whole batch, so that
                        a token's output depends on its neighbours: the threshold is set to 0
    4-bit, CPU          the first forward repacks the weights in place for a kernel without a
                        gradient, which silently makes gradients wrong: never repacked
    4-bit, CPU          rows that are no whole number of blocks are unpacked wrongly: refused
    messages            a warning per layer and forward, and one at import: silenced
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from skipgpt.config.checks import check_choice
from skipgpt.errors import MissingExtraError, UnsupportedModelError

Quantization = Literal["8bit", "4bit"]
KINDS: tuple[Quantization, ...] = get_args(Quantization)
_TALKATIVE = ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops")


def check_quantization(kind: str | None) -> Quantization | None:
    """Return the kind; raise a ConfigError if it is not a known one."""
    return check_choice("choosing the quantisation", kind, (*KINDS, None))


def quantization_of(model: nn.Module) -> Quantization | None:
    """How bitsandbytes holds a model's weights; None for all other models."""
    return next((kind for kind in KINDS if getattr(model, f"is_loaded_in_{kind}", False)), None)


def loading_options(
    kind: Quantization | None, config: Any, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """What `from_pretrained` needs beyond the dtype; empty for a base that is not quantised.

    A base that is stored quantised stays as it is stored. The dtype is that of what is not
    quantised, and to compute in. Weights are quantised on the device, and can
    neither be moved nor cast afterwards.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    stored = getattr(config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    by_bitsandbytes = any(stored.get(f"load_in_{each}") for each in KINDS)
    if not by_bitsandbytes and (stored or kind is None):
        return {}
    silence()
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "quantize", "loading a quantised base") from error
    # With its index, as in `cuda:0`: accelerate compares it with the device it trains on.
    options: dict[str, Any] = {"device_map": {"": str(torch.empty(0, device=device).device)}}
    if not by_bitsandbytes:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
            if kind == "8bit"
            else BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        )
    return options


def make_safe(model: nn.Module, doing: str) -> None:
    """Set a model up for routing before its first forward, if it is quantised.

    Raises:
        UnsupportedModelError: 4-bit layers on a CPU whose rows are no whole number of blocks, or
            no layer that bitsandbytes could quantise.
    """
    if not getattr(model, "is_quantized", False):
        return
    silence()
    held, broken = 0, []
    for path, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # Linear4bit
            held += 1
            module.support_avx512bf16_for_cpu = False
            weight: Any = module.weight
            if weight.device.type == "cpu" and module.in_features % weight.blocksize:
                broken.append(f"{path} ({module.in_features})")
        elif hasattr(getattr(module, "state", None), "threshold"):  # Linear8bitLt
            held += 1
            module.state.threshold = 0.0
    if quantization_of(model) and not held:  # Falcon's linear layers are a class of its own
        raise UnsupportedModelError(
            doing,
            got="no layer that bitsandbytes quantises",
            expected="layers of class nn.Linear",
            todo="load it without --quantize (quantize=None)",
        )
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise UnsupportedModelError(
            doing,
            got=f"4-bit layers on a CPU whose inputs do not fill their blocks: "
            f"{', '.join(broken[:3])}{more}",
            expected="numbers of inputs divisible by the block size, 64: bitsandbytes unpacks "
            "others wrongly there",
            todo="use 8bit, or a GPU",
        )


def size(parameter: Tensor) -> int:
    """How many weights a parameter holds, also where it is packed (4-bit) or sharded (ZeRO-3)."""
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return math.prod(packed.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def silence() -> None:
    """Silence the repeated warnings of bitsandbytes; errors are still logged."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def scales_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what bitsandbytes holds beside its weights: without it they are other weights.

    Example:
        names = [name for name, _ in scales_of(model)]  # such as model.layers.0.mlp.up_proj.SCB
    """
    for path, module in model.named_modules():
        weight, state = getattr(module, "weight", None), getattr(module, "state", None)
        row_scales = getattr(weight, "SCB", None)
        if row_scales is None:  # moved there by the first forward
            row_scales = getattr(state, "SCB", None)
        if isinstance(row_scales, Tensor):
            yield f"{path}.SCB", row_scales
        blocks = getattr(weight, "quant_state", None)
        if blocks is not None:
            yield f"{path}.absmax", blocks.absmax
            if blocks.state2 is not None:
                yield f"{path}.absmax2", blocks.state2.absmax
