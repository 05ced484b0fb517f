"""Turns of a chat to token ids, through the chat template of a base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from skipgpt.data.encoding import encode_chat
from skipgpt.data.left_out import left_out
from skipgpt.errors import ConfigError
from skipgpt.model.loading.generation_settings import in_parts, wants_parts

Turn = dict[str, Any]


def chat_ids(
    tokenizer: Any, turns: Sequence[Turn], control_tokens: bool = False, **options: Any
) -> list[int]:
    """The token ids of a chat; content is given as parts where the template reads nothing else.

    Args:
        tokenizer: of the base model, with a chat template.
        turns: with `role` and `content`, and whatever else the template reads.
        control_tokens: whether control tokens that are written in the turns count as such; else
            they are text.
        options: of `apply_chat_template`; `add_generation_prompt` where none is given. To go on
            with an empty turn is to begin it.

    Raises:
        ConfigError: there is no template, it refuses the turns, it leaves a part of them out, or
            the turn to continue calls tools.

    Example:
        ids = chat_ids(tokenizer, [{"role": "user", "content": "What do cats do?"}])
    """
    options = options or {"add_generation_prompt": True}
    doing = "putting messages into the chat template"
    if not tokenizer.chat_template:
        raise ConfigError(
            doing,
            got="a tokenizer without one",
            expected="a model that was trained on chats",
            todo="give a plain prompt: leave --chat out, or use /v1/completions",
        )
    if options.get("continue_final_message"):
        if "tool_calls" in turns[-1]:
            raise ConfigError(
                doing,
                got=f"messages.{len(turns) - 1}, which calls tools, as the turn to continue",
                expected="a last turn of text, or the results of its tools after it",
                todo="add them, or set add_generation_prompt to true",
            )
        if not turns[-1].get("content"):
            turns, options = turns[:-1], {"add_generation_prompt": True}
    if wants_parts(tokenizer):
        turns = [
            turn | {"content": in_parts(turn["content"])}
            if isinstance(turn.get("content"), str)
            else turn
            for turn in turns
        ]
    try:
        ids = encode_chat(tokenizer, turns, control_tokens=control_tokens, **options)
    except Exception as error:  # templates raise whatever they like
        raise ConfigError(
            doing, got=f"its refusal of these messages: {error}", expected="messages that it takes"
        ) from error
    if lost := left_out(turns, partial(_rendered, tokenizer, options)):
        raise ConfigError(
            doing,
            got=lost,
            expected="turns and fields that the template of this model reads",
            todo="leave it out",
        )
    return ids


def _rendered(tokenizer: Any, options: dict[str, Any], turns: Sequence[Turn]) -> str:
    return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **options))
