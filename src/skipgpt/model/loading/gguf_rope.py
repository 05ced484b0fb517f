"""The rotary embedding of a GGUF file, where transformers does not read it.

llama.cpp stores the scaling of Llama 3 as a tensor, `rope_freqs.weight` [Dh/2]: the divisor of each
frequency. transformers ignores it, which changes the model's output. So the setting that gives
these divisors is put into the config. Scalings that a file's settings name and that transformers
does not read are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipgpt.errors import UnsupportedModelError
from skipgpt.model.loading.gguf_header import Header

DIVISORS = "rope_freqs.weight"
_FLOAT32 = 0
_LLAMA_3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The same in all releases of Llama 3; the factor is the largest divisor."""


def scale_rope(config: Any, header: Header, path: Path, doing: str) -> None:
    """Put a file's rotary scaling into the config that transformers made from it, in place.

    Raises:
        UnsupportedModelError: the scaling cannot be expressed in the config.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kind = header.own("rope.scaling.type", "none")
    if kind != "none" and rope.get("rope_type", "default") == "default":
        raise _unread(doing, f"a rotary embedding with scaling {kind!r}")
    if DIVISORS not in header.tensors:
        return
    divisors = _read(header, path)
    if divisors is None or not rope:
        raise _unread(doing, f"divisors of a rotary embedding, {DIVISORS}")
    if bool((divisors == 1).all()):
        return
    config.rope_parameters = rope | _LLAMA_3 | {"factor": float(divisors.max())}
    if not _gives(config, divisors):
        raise _unread(doing, f"divisors of a rotary embedding, {DIVISORS}, unlike those of Llama 3")


def _read(header: Header, path: Path) -> Tensor | None:
    """The divisors [Dh/2]; None if they are not float32."""
    stored = header.tensors[DIVISORS]
    if stored.kind != _FLOAT32:
        return None
    with path.open("rb") as file:
        file.seek(stored.offset)
        return torch.frombuffer(
            bytearray(file.read(stored.end - stored.offset)), dtype=torch.float32
        )


def _gives(config: Any, divisors: Tensor) -> bool:
    """Whether transformers divides the frequencies by these divisors with this config."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    steps = torch.arange(len(frequencies)) / len(frequencies)
    plain = config.rope_parameters["rope_theta"] ** -steps
    same_size = frequencies.shape == divisors.shape
    return same_size and torch.allclose(plain / frequencies, divisors, rtol=1e-3)


def _unread(doing: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        doing,
        got=what,
        expected="one that transformers reads from a GGUF file, or that of Llama 3",
        todo="load the model from its transformers folder",
    )
