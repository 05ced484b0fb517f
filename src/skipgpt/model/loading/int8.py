"""8-bit weights for inference on a CPU: what decoding reads shrinks to a quarter.

    weights       one scale per output, rounded once, when the model is quantised
    activations   one scale per token, rounded in every forward; torch's own 8-bit product

Scales are per token so that a token's output does not depend on the tokens that run beside it:
packed or not, it is the same to the bit. Integer products are exact, so the order of sums does not
matter either.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from skipgpt.config.checks import check_choice
from skipgpt.errors import ConfigError, UnsupportedModelError
from skipgpt.model.families.linear import in_width, is_plain, is_transposed, out_width
from skipgpt.model.families.parameter_names import kind_of
from skipgpt.model.families.table import family_of

_LARGEST = 127
_DOING = "quantising a model to int8"

M = TypeVar("M", bound=nn.Module)


class Int8Linear(nn.Module):
    """A linear layer that multiplies 8-bit rows by 8-bit weights and returns the rows' dtype.

    It takes the place of `plain`, whose bias it keeps as it is.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = in_width(plain), out_width(plain)
        held = plain.weight.detach()
        weight, scale = _rounded(held.T.contiguous() if is_transposed(plain) else held)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale[:, 0])
        self.bias = plain.bias
        self.scale: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows […, in_features] to […, out_features].

        Raises:
            ConfigError: a gradient is needed, which rounding does not have.
        """
        if rows.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                "running an int8 layer",
                got="an input that requires a gradient",
                expected="inference",
                todo="train before quantising, or use torch.no_grad()",
            )
        rounded, scale = _rounded(rows.reshape(-1, self.in_features))
        product = torch._int_mm(rounded, self.weight.t()).to(scale.dtype)
        product = product.mul_(scale).mul_(self.scale)
        product = product if self.bias is None else product.add_(self.bias)
        return product.to(rows.dtype).view(*rows.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The sizes, as `nn.Linear` prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize_int8(model: M) -> M:
    """Quantise the linear layers of attention, MLP and head to 8 bits, in place, for inference.

    Embeddings, norms, routers, stand-ins and thresholds stay as they are. A head that shares its
    weight with the embedding gets one of its own. No parameter requires a gradient afterwards, and
    the model cannot be saved as a checkpoint.

    Args:
        model: of a family in `skipgpt families`, dense or with routers, on a CPU, LoRA merged.

    Returns:
        The same model.

    Raises:
        ConfigError: the model is on another device, in training mode, quantised already, or has
            LoRA that is not merged; or 8-bit products overflow on this CPU.
        UnsupportedModelError: the family is not supported, or its experts share one tensor.

    Example:
        model, tokenizer = skipgpt.load("out/llama-25", merge=True)
        quantize_int8(model)
    """
    layers = _quantizable(model)
    _check(model)
    for path in layers:
        model.set_submodule(path, Int8Linear(model.get_submodule(path)))
    model.requires_grad_(False)
    return model


def check_loaded_as(kind: str | None) -> str | None:
    """Return the kind; raise a ConfigError unless a loaded checkpoint can be quantised to it."""
    return check_choice(
        "choosing the quantisation of a loaded model",
        kind,
        ("int8", None),
        todo="choose 8bit and 4bit when training: the checkpoint keeps them",
    )


def is_int8(model: nn.Module) -> bool:
    """Whether `quantize_int8` was applied to the model."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, K] as int8, and the scale [N, 1] of each, float32 or wider."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    largest = rows.abs().amax(-1, keepdim=True)
    scale = largest.clamp_min_(torch.finfo(torch.float32).tiny).div_(_LARGEST)
    return (rows / scale).round_().to(torch.int8), scale


def _quantizable(model: nn.Module) -> list[str]:
    """Paths of the linear layers to quantise.

    Raises a ConfigError for LoRA or quantised weights, and an UnsupportedModelError for experts
    that share a tensor.
    """
    if any(kind_of(name) == "lora" for name, _ in model.named_parameters()):
        raise ConfigError(
            _DOING,
            got="a model with LoRA on it",
            expected="LoRA in the weights",
            todo="load it with merge=True, or call merge_and_unload",
        )
    if not all(p.is_floating_point() for p in model.parameters()):
        raise ConfigError(
            _DOING, got="a model that is quantised already", expected="floating-point weights"
        )
    family = family_of(model)
    paths = {id(module): path for path, module in model.named_modules()}
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    found, left = [head], []
    for layer in family.layers_of(model):
        for part in (getattr(layer, family.attn), getattr(layer, family.mlp)):
            left += [name for name, p in part.named_parameters() if p.ndim > 2]
            found += [module for module in part.modules() if is_plain(module)]
    if left:
        raise UnsupportedModelError(
            _DOING,
            got=f"experts that share one tensor: {', '.join(dict.fromkeys(left))}",
            expected="attention and MLP made of linear layers",
            todo="leave the model as it is",
        )
    return [paths[id(module)] for module in found]


def _check(model: nn.Module) -> None:
    """Raise a ConfigError if the quantised model would not run, or would run wrongly."""
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        raise ConfigError(
            _DOING,
            got=f"a model on {', '.join(sorted(devices))}",
            expected="one on a CPU",
            todo="train with --quantize 8bit for a GPU",
        )
    if model.training:
        raise ConfigError(
            _DOING,
            got="a model in training mode",
            expected="one that is trained",
            todo="call model.eval() first",
        )
    if not products_are_exact():
        raise ConfigError(
            _DOING,
            got="a CPU whose 8-bit products overflow",
            expected="one with VNNI: Intel since Cascade Lake and Alder Lake, AMD since Zen 4",
            todo="leave the model as it is",
        )


@functools.cache
def products_are_exact() -> bool:
    """Whether 8-bit products are exact: older x86 CPUs add pairs of them in 16 bits."""
    rows = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    return bool((torch._int_mm(rows, rows.t()) == 64 * _LARGEST**2).all())
