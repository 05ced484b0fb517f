"""Whether a base model has the weights that routers were trained on, whatever dtype it is in."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from skipgpt.model.families.parameter_names import is_routing, kind_of
from skipgpt.model.loading.bitsandbytes import quantization_of, scales_of

_SAMPLED_VALUES = 64
_PART = 1 << 20
"""Values that are rounded at a time: a copy of a whole embedding would show in the peak memory."""


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Hex digits that change when the weights of the base model do: 16 of samples, 16 of all.

    The first half hashes name, shape and 64 evenly spaced values of every base parameter; the
    second every value of every base parameter and saved buffer. Of weights that are held quantised,
    which another device may round otherwise, the second half has the scales. Values are rounded to
    bfloat16 so that the same weights loaded in another dtype have the same fingerprint. Routers,
    LoRA and the renaming that PEFT does are left out.
    """
    digest = hashlib.sha256()
    named: dict[str, Tensor] = {
        _base_name(name): each for name, each in model.named_parameters() if kind_of(name) == "base"
    }
    for name, parameter in sorted(named.items()):
        flat = parameter.detach().flatten()
        stride = max(1, len(flat) // _SAMPLED_VALUES)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_rounded(flat[::stride][:_SAMPLED_VALUES]))
    samples = digest.hexdigest()[:16]
    if quantization_of(model) is not None:
        named = {name: each for name, each in named.items() if each.is_floating_point()}
        named |= {_base_name(name): each for name, each in scales_of(model)}
    saved = model.state_dict().keys()  # with buffers such as biases of experts
    buffers = ((name, each) for name, each in model.named_buffers() if name in saved)
    named |= {_base_name(name): each for name, each in buffers if kind_of(name) == "base"}
    with ThreadPoolExecutor() as pool:  # hashing runs outside of Python's lock
        digests = pool.map(_digest, [tensor for _, tensor in sorted(named.items())])
        whole = hashlib.sha256(b"".join(digests)).hexdigest()[:16]
    return f"{samples}-{whole}"


def is_of_same_weights(found: str, recorded: str) -> bool:
    """Whether a base's fingerprint is the recorded one, of which version 0.1 wrote the first half.

    Example:
        >>> is_of_same_weights("00c0ffee00c0ffee-0123456789abcdef", "00c0ffee00c0ffee")
        True
    """
    return found == recorded or ("-" not in recorded and found.partition("-")[0] == recorded)


@torch.no_grad()
def weights_digest(model: nn.Module, *, routers: bool = True) -> str:
    """32 hex digits that change when any value of any weight or buffer does, for cache keys.

    Those of routers and stand-ins count if `routers` is set.
    """
    digest = hashlib.blake2b(digest_size=16)
    named = dict([*model.named_parameters(), *model.named_buffers(), *scales_of(model)])
    for name, tensor in sorted(named.items(), key=lambda item: item[0]):
        if routers or not is_routing(name):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            values = tensor.detach().cpu().contiguous().flatten()
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    digest = hashlib.sha256()
    for part in torch.split(tensor.detach().flatten(), _PART):
        digest.update(_rounded(part))
    return digest.digest()


def _rounded(values: Tensor) -> memoryview:
    """The bytes of values [N], rounded to bfloat16."""
    return values.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().data


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
