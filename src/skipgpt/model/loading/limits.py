"""What a model can read: how many tokens at once, and which ids."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skipgpt.errors import ConfigError, DataError

_STRETCHED = ("linear", "dynamic", "yarn")
"""Scalings of rotary embeddings whose configs may state the context before scaling."""


def context_of(model: Any) -> int | None:
    """How many tokens a model was made to read at once; None where its config does not say."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not longest:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _STRETCHED and rope.get("factor"):
        original = rope.get("original_max_position_embeddings") or longest
        longest = max(longest, int(original * rope["factor"]))
    return int(longest)


def check_length(doing: str, context: int | None, prompt: int, new: int = 0) -> None:
    """Raise a ConfigError if a prompt and the new tokens do not fit into the context."""
    if context is None or prompt + new <= context:
        return
    room = context - prompt
    shorter = f"shorten the prompt to at most {context - new:,} tokens" if new < context else ""
    fewer = f"ask for at most {room:,} new tokens" if room > 0 and new else ""
    raise ConfigError(
        doing,
        got=f"a prompt of {prompt:,} tokens" + (f" and {new:,} new tokens" if new else ""),
        expected=f"at most {context:,} tokens in all, the model's context",
        todo=", or ".join(filter(None, (shorter, fewer))) or "take a model with a longer context",
    )


def check_ids(doing: str, model: Any, tokenizer: Any, ids: Tensor) -> None:
    """Raise a DataError if the model's embedding has no row for some of these ids.

    The message names the token where the tokenizer is given.
    """
    rows = model.get_input_embeddings().num_embeddings
    beyond = ids[(ids >= rows) | (ids < 0)]
    if len(beyond):
        token = int(beyond[0])
        name = tokenizer.convert_ids_to_tokens(token) if tokenizer and token >= 0 else None
        got = f"token {token}" + (f" ({name!r})" if name is not None else "")
    elif tokenizer and (written := _written_without_a_row(tokenizer, rows, ids)):
        got = f"the control token {written!r}, token {tokenizer.convert_tokens_to_ids(written)}"
    else:
        return
    raise DataError(
        doing,
        got=got,
        expected=f"tokens from 0 to {rows - 1:,}, the rows of the model's embedding",
        todo="take the tokenizer that belongs to the model, or leave such tokens out of the text",
    )


def _written_without_a_row(tokenizer: Any, rows: int, ids: Tensor) -> str | None:
    """A control token without a row that stands as text in ids of any shape; None if none does.

    Control tokens in a text are text. But a model that lacks a tokenizer's control tokens cannot
    have learned to read a text in their format.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    foreign = [str(token) for number, token in added.items() if number >= rows]
    if not foreign or not ids.numel():
        return None
    text = "\n".join(tokenizer.batch_decode(ids.reshape(-1, ids.shape[-1]).tolist()))
    return next((token for token in foreign if token in text), None)


def check_rows(doing: str, model: Any, tokenizer: Any, *blocks: Tensor) -> None:
    """Refuse blocks [N, T] or [T] that are longer than the context or fail `check_ids`.

    Raises:
        ConfigError: rows are too long.
        DataError: a token has no embedding.
    """
    context = context_of(model)
    for rows in blocks:
        check_ids(doing, model, tokenizer, rows)
        if context is not None and rows.shape[-1] > context:
            raise ConfigError(
                doing,
                got=f"rows of {rows.shape[-1]:,} tokens",
                expected=f"at most {context:,}, the model's context",
                todo=f"give at most --block-size={context} (data.block_size), or shorter blocks",
            )
