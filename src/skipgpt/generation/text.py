"""Text generation through transformers' own `generate`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from skipgpt.data.chat import chat_ids
from skipgpt.data.detokenize import token_texts
from skipgpt.data.encoding import HALF_A_PAIR, encode, encode_prompt, has_surrogates
from skipgpt.errors import ConfigError
from skipgpt.generation.end_of_text import EndOfText
from skipgpt.generation.live import LiveRouting, OnToken
from skipgpt.generation.run import continue_ids
from skipgpt.generation.stop_strings import NewText
from skipgpt.model.caches.policy import cache_bytes, dense_cache_bytes
from skipgpt.model.loading.generation_settings import ends_of, sampling_arguments
from skipgpt.model.loading.limits import check_ids, check_length, context_of
from skipgpt.model.state import count_routing, record_routing
from skipgpt.model.trace import KeepCounts, Trace


@dataclass(frozen=True)
class Generation:
    """A generated continuation.

    Attributes:
        text: the continuation, without the prompt.
        prompt_tokens: tokens in the prompt.
        new_tokens: tokens generated.
        sparsity: share of modules skipped over prompt and continuation.
        cache_bytes: memory of the keys and values at the end.
        dense_cache_bytes: the same if every token cached its own; equal under `kv="dense"`.
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


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    chat: bool = False,
    control_tokens: bool = False,
    on_token: OnToken | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        model: with routers, on its device.
        tokenizer: the base model's tokenizer.
        prompt: the prompt, not empty.
        max_new_tokens: the most tokens to generate.
        temperature: 0 decodes greedily.
        chat: whether to wrap the prompt as a user message in the chat template.
        control_tokens: whether control tokens written in the prompt count as such; otherwise they
            are plain text.
        on_token: called with each token, prompt included, and what ran for it, as soon as that is
            known; concatenated, the texts are the (templated) prompt and the continuation.

    Raises:
        ConfigError: an empty prompt or one that is no text, fewer than one token requested, a
            negative temperature, more tokens than fit the context, or `chat` without a chat
            template.
        DataError: a token that the model has no embedding for.

    Example:
        told = []
        generate(model, tokenizer, "The cat", on_token=told.append)
        print([(token.text, token.compute) for token in told])
    """
    if max_new_tokens < 1:
        raise ConfigError("generating", got=f"{max_new_tokens} new tokens", expected="1 or more")
    if not 0 <= temperature < math.inf:
        raise ConfigError("generating", got=f"temperature {temperature}", expected="0 or more")
    if has_surrogates(prompt):  # bytes of another encoding on a command line
        raise ConfigError(
            "reading the prompt",
            got=f"a prompt in which {HALF_A_PAIR}",
            expected="text in UTF-8, in a locale of UTF-8",
            todo="set LC_ALL=C.UTF-8 and give the prompt in UTF-8",
        )
    if chat:
        given = chat_ids(tokenizer, [{"role": "user", "content": prompt}], control_tokens)
    else:
        given = encode_prompt(tokenizer, prompt, control_tokens=control_tokens)
    ids = torch.tensor([given], dtype=torch.int64, device=model.device)
    length = len(given)
    if length == 0:
        raise ConfigError("generating", got="an empty prompt", expected="at least one token")
    check_ids("generating", model, tokenizer, ids)
    check_length("generating", context_of(model), length, max_new_tokens)
    ends = ends_of(model, tokenizer)
    new, shown = NewText(tokenizer, given, ends), []
    with ExitStack() as stack:
        routed: Trace | KeepCounts
        live = None
        if on_token is None:
            routed = stack.enter_context(count_routing(model))
        else:
            routed = stack.enter_context(record_routing(model))
            texts = (
                token_texts(given, tokenizer)
                if chat
                else _texts_of(tokenizer, prompt, given, control_tokens)
            )
            live = LiveRouting(routed, texts, on_token)

        def tell(_: int, text: str) -> None:
            shown.append(text)
            if live:
                live.add(text)

        output = continue_ids(
            model,
            ids,
            ends,
            max_new_tokens=max_new_tokens,
            stopping_criteria=[EndOfText([new], tell)],
            **sampling_arguments(temperature),
        )
        rest = new.rest()
        if live:
            live.end(rest)
    return Generation(
        text="".join(shown) + rest,
        prompt_tokens=length,
        new_tokens=len(shown),
        sparsity=routed.sparsity(),
        cache_bytes=cache_bytes(output["past_key_values"]),
        dense_cache_bytes=dense_cache_bytes(output["past_key_values"]),
    )


def _texts_of(tokenizer: Any, prompt: str, ids: Sequence[int], control_tokens: bool) -> list[str]:
    """Split the prompt into the text of each token; concatenated they are exactly the prompt.

    If the tokenizer gives no offsets and decodes to another text, the last token gets it all.
    """
    if not tokenizer.is_fast:
        pieces = token_texts(ids, tokenizer)
        return pieces if "".join(pieces) == prompt else [""] * (len(ids) - 1) + [prompt]
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    encoded = encode(tokenizer, prompt, control_tokens=control_tokens, **options)
    spans = encoded["offset_mapping"]
    spans = [(0, 0)] * (len(ids) - len(spans)) + spans
    pieces, done = [], 0
    for n, (_, end) in enumerate(spans):
        shared = n + 1 < len(spans) and spans[n + 1][0] < end  # a character of several tokens
        end = done if shared else max(done, end)
        pieces.append(prompt[done:end])
        done = end
    pieces[-1] += prompt[done:]
    return pieces
