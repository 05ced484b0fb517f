"""Request schemas: OpenAI's completions and chat, plus `sparsity` and `budget`."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from skipgpt.config import Budget
from skipgpt.data.encoding import HALF_A_PAIR, has_surrogates

NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "logit_bias": ({},),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
}
"""Unsupported fields, and the values under which they have no effect."""
IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
     "parallel_tool_calls"}
)  # fmt: skip
"""Fields that do not change the text."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    if has_surrogates(value):  # JSON can hold them
        raise ValueError(f"{HALF_A_PAIR}, so this is no text")
    return value


def _prompt(value: Any) -> str | list[int]:
    """Accept text or token ids, also as the only item of a list."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise ValueError(f"{len(value)} prompts; this server takes one per request")
        (value,) = value
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise ValueError("expected text, token ids, or a list of one of these")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or len(stops) > 4 or "" in stops:
        raise ValueError("expected text that is not empty, or a list of at most 4 of it")
    return tuple(map(_text, stops))


def _content(value: Any) -> str:
    """Accept text, or the texts of parts, one on each line, as vLLM reads them."""
    if not isinstance(value, list):
        return _text(value)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError("expected text, or parts of type text")
        if more := [key for key in part if key not in ("type", "text") and part[key] is not None]:
            raise ValueError(f"expected nothing but text in a part of type text, not {more[0]}")
    return "\n".join(_text(part.get("text")) for part in value)


class SamplingFields(BaseModel):
    """Fields that both kinds of request have.

    Attributes:
        model: name of the served model; any where None.
        max_tokens: maximum tokens to generate.
        temperature: 0 is greedy.
        top_p: sample from the most likely tokens that together have this probability.
        seed: for sampling.
        stop: sequences that end the text, up to four.
        stream: send text as it comes.
        stream_options: `{"include_usage": true}` for a last chunk with the usage.
        sparsity: share to save; the server's own where None.
        budget: what `sparsity` counts: `modules`, `flops` or `time`; as the checkpoint was trained
            where None.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    sparsity: float | None = Field(None, ge=0, le=0.95)
    budget: Budget | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, values: Any) -> Any:
        """Treat null fields as absent."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _refuse_what_is_not_offered(self) -> SamplingFields:
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and value not in NOT_OFFERED.get(name, ()):
                raise ValueError(f"{name}={value!r} is not offered by this server"[:300])
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionRequest(SamplingFields):
    """The body of `/v1/completions`.

    Attributes:
        prompt: text, or token ids; or a list of one of these.
        logprobs: how many most likely tokens to report per position, beside the chosen one.
    """

    prompt: Annotated[str | list[int], PlainValidator(_prompt)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def max_new_tokens(self) -> int:
        """Maximum tokens to generate; 16 by default, as in OpenAI's API."""
        return self.max_tokens or 16


class Message(BaseModel):
    """One turn of a chat.

    Other fields, such as `name`, `tool_calls` and `tool_call_id`, go to the chat template.

    Attributes:
        role: whose turn it is.
        content: text of the turn; empty where it only calls tools.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    role: Annotated[str, PlainValidator(_text)]
    content: Annotated[str, PlainValidator(_content)] = ""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nothing(cls, values: Any) -> Any:
        """Treat fields that are null or an empty list as absent."""
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value not in (None, [])}
        if "content" not in given and "tool_calls" not in given:
            raise ValueError("content: expected text; only a turn with tool_calls may have none")
        return given

    def turn(self) -> dict[str, Any]:
        """Return the turn for a chat template, with JSON arguments of calls parsed."""
        turn = self.model_dump()
        if "tool_calls" in turn:
            calls = turn["tool_calls"]
            calls = calls if isinstance(calls, list) else [calls]
            turn["tool_calls"] = [_with_arguments(call) for call in calls]
        return turn


def _with_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call  # the template gets what the client sent
    return call | {"function": function | {"arguments": arguments}}


class ChatRequest(SamplingFields):
    """The body of `/v1/chat/completions`.

    Attributes:
        messages: the turns so far.
        max_completion_tokens: another name of `max_tokens`.
        logprobs: report the log-probability of each token.
        top_logprobs: how many most likely tokens to report per position.
        continue_final_message: whether the reply continues the last turn; by default, where that is
            the assistant's and `add_generation_prompt` is not given.
        add_generation_prompt: whether a new turn of the assistant begins after the messages.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> ChatRequest:
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: expected logprobs to be true beside it")
        most = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(most) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; expected one of them")
        return self

    @property
    def template_options(self) -> dict[str, bool]:
        """How the chat template ends: `add_generation_prompt` and `continue_final_message`."""
        goes_on, begins = self.continue_final_message, self.add_generation_prompt
        if goes_on is None:
            goes_on = begins is None and self.messages[-1].role == "assistant"
        begins = not goes_on if begins is None else begins
        return {"continue_final_message": goes_on, "add_generation_prompt": begins}

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum tokens to generate; None for as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def places(self) -> int | None:
        """As `CompletionRequest.logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None
