"""What every way of running is measured against: the definition, one full forward at a time.

The definition is execution `gated` without a cache and without padding. The names below say in one
place which policies of keys and values, and which families, the ways are tried with.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from cases import CLOSE, families, routed
from cases import LAYOUTS as ALL_LAYOUTS
from skipgpt.model.state import execution
from tiny import LONG

KV = ("dense", "skip")
every_policy = pytest.mark.parametrize("kv", KV)
# StaticCache, QuantizedCache and offloaded caches have room for the key of every token.
caches_of_all_tokens = pytest.mark.parametrize("kv", ["dense"])

# One for each layout; the windows of 5 that some have are shorter than the prompts.
LAYOUTS = ("llama", "mistral", "gemma3_text", "gpt_neox", "cohere2", "gpt2", "mixtral")
every_layout = pytest.mark.parametrize("family", LAYOUTS)
# What `generate` does of its own is tried with these: what makes a layout is tried with caches.
WAYS = LAYOUTS if LONG else ("llama", "gemma3_text", "gpt_neox")
every_way = pytest.mark.parametrize("family", WAYS)
other_layouts = families(name for name in (*ALL_LAYOUTS, "mistral") if name not in WAYS)

NEW = 6
# Token 0 ends a text; the least number of new tokens keeps it from being chosen.
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
SAMPLING = GREEDY | {"do_sample": True, "temperature": 1.5}


def sparse_model(family: str, kv: str, attention: str | None = None) -> Any:
    """A routed model that executes `sparse`, with a policy of keys and values."""
    model: Any = routed(family, attention, kv=kv)
    if not hasattr(type(model.config), "num_key_value_heads"):
        # Transformers sizes static caches by it, also where it is only one of our tiny settings.
        vars(model.config).pop("num_key_value_heads", None)
    return model


def prompt(rows: int = 1, tokens: int = 11, seed: int = 0) -> Tensor:
    """Token ids [rows, tokens] without padding."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(1, 257, (rows, tokens), generator=made)


def defined(model: Any, ids: Tensor) -> Tensor:
    """The logits [B, T, vocabulary] of rows without padding, as the method defines them."""
    with execution(model, "gated"):
        logits: Tensor = model(ids, use_cache=False).logits
    return logits


def chosen_by_hand(model: Any, ids: Tensor, tokens: int = NEW) -> Tensor:
    """Rows [B, T + tokens], continued greedily with a full forward for each token."""
    for _ in range(tokens):
        last = defined(model, ids)[:, -1:]
        last[..., 0] = -torch.inf
        ids = torch.cat([ids, last.argmax(-1)], dim=1)
    return ids


def generated(model: Any, ids: Tensor, **how: Any) -> Any:
    """What transformers' `generate` gives, with the raw logits of each new token."""
    torch.manual_seed(3)
    return model.generate(ids, return_dict_in_generate=True, output_logits=True, **GREEDY | how)


def check_logits(model: Any, output: Any, prompt_tokens: int = 11) -> None:
    """The logits that chose each new token are those of one full forward over the whole."""
    full = defined(model, output.sequences)[:, prompt_tokens - 1 : -1]
    assert full.shape[1] >= NEW
    torch.testing.assert_close(torch.stack(output.logits, dim=1), full, **CLOSE)


def empty_cache(model: Any) -> Cache:
    """As `generate` makes one: its sliding layers hold no more than their window."""
    return DynamicCache(config=model.config)


def in_chunks(model: nn.Module, ids: Tensor, chunks: list[int], cache: Cache | None) -> Tensor:
    """The logits of rows that are fed a few tokens at a time; goes on where the cache ends."""
    assert sum(chunks) == ids.shape[1]
    parts = ids.split(chunks, dim=1)
    return torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)


def needs_transformers(release: str, feature: str) -> None:
    """Skip on the older releases of the supported range, of which some things cannot be had."""
    if Version(transformers.__version__) < Version(release):
        pytest.skip(f"transformers {release} is the first with {feature}")


def has_windows(model: Any) -> bool:
    """Whether attention may slide."""
    return getattr(model.config.get_text_config(), "sliding_window", None) is not None
