"""What a client may ask for: OpenAI's completions and chat, with `sparsity` beside."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)


def _encodable(text: str) -> str:
    """JSON can hold halves of letters, which no tokenizer takes."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("a surrogate stands alone, so this is no text")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[str, StringConstraints(min_length=1)]
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "response_format": (None, {"type": "text"}),
}
"""Fields that this server has one answer to, and the values that ask for that one."""


class Wanted(BaseModel):
    """Fields that both kinds of request have.

    Attributes:
        model: the name that the server gives its model; any where None.
        max_tokens: the most to generate.
        temperature: 0 is greedy.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of sampling.
        stop: sequences that end the text, up to four.
        stream: send text as it comes.
        stream_options: `{"include_usage": true}` for a last chunk with the usage.
        sparsity: share of modules to skip; the server's own where None.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    sparsity: float | None = Field(None, ge=0, le=0.95)

    @model_validator(mode="after")
    def _refuse_what_is_not_offered(self) -> Wanted:
        given = self.model_extra or {}
        for name, usual in NOT_OFFERED.items():
            if name in given and given[name] not in usual:
                raise ValueError(f"{name}={given[name]!r} is not offered by this server")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop sequences as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionRequest(Wanted):
    """The body of `/v1/completions`.

    Attributes:
        prompt: text, or token ids; or a list of one of these.
        logprobs: how many of the likeliest tokens to report at each place, beside the chosen one.
    """

    prompt: Text | list[int] | Annotated[list[Text] | list[list[int]], Field(max_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most(self) -> int:
        """Tokens to generate at most: 16 where nobody says, as OpenAI has it."""
        return self.max_tokens or 16

    def prompt_ids(self, tokenizer: Any) -> list[int]:
        """The prompt's tokens; none of an empty one."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            (prompt,) = prompt
        return tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt  # type: ignore[no-any-return]


class TextPart(BaseModel):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One turn of a chat."""

    role: Text
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ChatRequest(Wanted):
    """The body of `/v1/chat/completions`.

    Attributes:
        messages: the turns so far.
        max_completion_tokens: another name of `max_tokens`.
        logprobs: report the probability of each token.
        top_logprobs: and of so many of the likeliest.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most(self) -> int | None:
        """Tokens to generate at most; None for as many as the context has room for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def places(self) -> int | None:
        """As `CompletionRequest.logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None
