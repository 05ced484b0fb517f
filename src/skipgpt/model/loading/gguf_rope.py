"""The rotary embedding of a GGUF file, where transformers does not read it.

llama.cpp stores the scaling of Llama 3 as a tensor, `rope_freqs.weight` [Dh/2]: the divisor of each
frequency. transformers ignores it, which changes the model's output. So the setting that gives
these divisors is put into the config. Scalings that a file's settings name and that transformers
does not read are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipgpt.errors import UnsupportedModelError

DIVISORS = "rope_freqs.weight"
_LLAMA_3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The same in all releases of Llama 3; the factor is the largest divisor."""


def setting(file: Any, key: str, default: Any = None) -> Any:
    """What an open `gguf.GGUFReader` has under a key."""
    field = file.get_field(key)
    return default if field is None else field.contents()


def scale_rope(config: Any, file: Any, doing: str) -> None:
    """Put a file's rotary scaling into the config that transformers made from it, in place.

    Raises:
        UnsupportedModelError: the scaling cannot be expressed in the config.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kind = setting(file, f"{setting(file, 'general.architecture')}.rope.scaling.type", "none")
    if kind != "none" and rope.get("rope_type", "default") == "default":
        raise _unread(doing, f"a rotary embedding with scaling {kind!r}")
    stored = [tensor.data for tensor in file.tensors if tensor.name == DIVISORS]
    if not stored:
        return
    divisors = torch.from_numpy(np.array(stored[0]))
    if divisors.dtype != torch.float32 or not rope:
        raise _unread(doing, f"divisors of a rotary embedding, {DIVISORS}")
    if bool((divisors == 1).all()):
        return
    config.rope_parameters = rope | _LLAMA_3 | {"factor": float(divisors.max())}
    if not _gives(config, divisors):
        raise _unread(doing, f"divisors of a rotary embedding, {DIVISORS}, unlike those of Llama 3")


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
