"""Text in, text out, through transformers' own `generate`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.errors import ConfigError
from skipgpt.model.trace import record_routing


@dataclass(frozen=True)
class Generation:
    """A continuation.

    Attributes:
        text: without the prompt.
        prompt_tokens: how many tokens the prompt has.
        new_tokens: how many were added.
        sparsity: share of modules skipped over prompt and continuation.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    sparsity: float

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
            **how,
        )[0, length:]
    text = tokenizer.decode(output, skip_special_tokens=True)
    return Generation(text, length, len(output), trace.sparsity() if trace.steps else 0.0)
