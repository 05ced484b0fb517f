"""Text in, text out, through transformers' own `generate`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.errors import ConfigError
from skipgpt.model.cache_policy import cache_bytes, dense_cache_bytes
from skipgpt.model.trace import record_routing


@dataclass(frozen=True)
class Generation:
    """A continuation.

    Attributes:
        text: without the prompt.
        prompt_tokens: how many tokens the prompt has.
        new_tokens: how many were added.
        sparsity: share of modules skipped over prompt and continuation.
        cache_bytes: memory of the keys and values at the end.
        dense_cache_bytes: what they would take if every token left its own; the same under
            `kv="dense"`.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    sparsity: float
    cache_bytes: int
    dense_cache_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0
) -> Generation:
    """Continue a prompt.

    Args:
        model: with routers, on its device.
        tokenizer: of the base model.
        prompt: not empty.
        max_new_tokens: the most to add.
        temperature: 0 is greedy.

    Raises:
        ConfigError: an empty prompt, or fewer than one token asked for.
    """
    if max_new_tokens < 1:
        raise ConfigError("generating", got=f"{max_new_tokens} new tokens", expected="1 or more")
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise ConfigError("generating", got="an empty prompt", expected="at least one token")
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature}
    with record_routing(model) as trace:
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            return_dict_in_generate=True,
            **how,
        )
    added = output.sequences[0, length:]
    return Generation(
        text=tokenizer.decode(added, skip_special_tokens=True),
        prompt_tokens=length,
        new_tokens=len(added),
        sparsity=trace.sparsity() if trace.steps else 0.0,
        cache_bytes=cache_bytes(output.past_key_values),
        dense_cache_bytes=dense_cache_bytes(output.past_key_values),
    )
