"""How text is generated and where a turn ends: one decision for every command and engine.

Of a base's `generation_config` only what says where texts end is used: `eos_token_id` and
`stop_strings`. All else is left out: penalties, forced and suppressed tokens, minimum lengths,
beams, several sequences, and defaults of sampling. So temperature 0 is the argmax of the model's
logits, sampling draws from their softmax unless a request says otherwise, and two engines agree.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("skipgpt")

COLDEST = 1e-4
"""Temperatures up to this one decode greedily: dividing logits by them would overflow."""

NEUTRAL: dict[str, Any] = {
    "use_cache": True,
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""Settings of transformers with which the model alone decides; the rest are None."""

_SAMPLING = frozenset(
    {"temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
)
"""Settings that change sampled text only."""

_SILENT = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "stop_strings",
     "do_sample", "max_length", "max_new_tokens", "use_cache", "transformers_version"}
)  # fmt: skip
"""Settings that are kept, or that every caller sets itself."""

_QUESTION, _REPLY = "skipgptasks", "skipgptreplies"
_CONTENT = {"system": "skipgptrules", "user": _QUESTION, "assistant": _REPLY}


@dataclass(frozen=True)
class Ends:
    """Where a text ends.

    Attributes:
        ids: tokens that end it.
        strings: texts that end it, and are left out of it.
    """

    ids: tuple[int, ...]
    strings: tuple[str, ...] = ()


def ends_of(model: Any, tokenizer: Any, stops: Sequence[str] = ()) -> Ends:
    """Where a model's texts end.

    That is by its generation config, tokenizer and chat template, and at further stops.

    Example:
        >>> ends_of(model, tokenizer, ["<|im_end|>", "User:"])
        Ends(ids=(151643, 151645), strings=('<|im_end|>', 'User:'))
    """
    settings = vars(model.generation_config) if model.generation_config else {}
    return ends_in(settings, tokenizer, stops)


def ends_in(settings: Mapping[str, Any], tokenizer: Any, stops: Sequence[str] = ()) -> Ends:
    """`ends_of` from a generation config in place of a model."""
    found, own = settings.get("eos_token_id"), settings.get("stop_strings") or ()
    ids: set[int | None] = set(found) if isinstance(found, list | tuple) else {found}
    ids.add(tokenizer.eos_token_id)
    strings = dict.fromkeys([*([own] if isinstance(own, str) else own), *stops])
    named = stop_ids(tokenizer, [*strings, *_turn_ends(tokenizer)])
    known = {n for n in ids if n is not None and n >= 0}
    return Ends(tuple(sorted(known | named)), tuple(strings))


def stop_ids(tokenizer: Any, stops: Sequence[str]) -> set[int]:
    """The tokens that stop strings name: a special token has no text that a string could match."""
    added: dict[str, int] = tokenizer.get_added_vocab()
    return {added[text] for text in stops if text in added}


def _turn_ends(tokenizer: Any) -> list[str]:
    """The tokens with which a chat template ends an assistant's message.

    Each is the first added token behind a reply, whatever text lies between. Within a chat that may
    be what opens the user's next turn; that counts only where nothing else ends a reply.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return []
    added = [token for token in tokenizer.get_added_vocab() if token.strip()]
    last = _first_of(added, rendered(tokenizer, ("user", "assistant")).partition(_REPLY)[2])
    chat = rendered(tokenizer, ("user", "assistant", "user"))
    opening, _, rest = chat.partition(_QUESTION)
    inside = _first_of(added, rest.partition(_REPLY)[2].partition(_QUESTION)[0])
    if inside and last and inside in opening:
        inside = None
    if not (last or inside):
        _warn_without_end(str(template))
    return [token for token in (last, inside) if token]


def wants_parts(tokenizer: Any) -> bool:
    """Whether a chat template reads content as a list of parts, and leaves plain text out."""
    return not rendered(tokenizer, ("user",), (False,)) and bool(
        rendered(tokenizer, ("user",), (True,))
    )


def in_parts(text: str) -> list[dict[str, str]]:
    """A text as content for such a template."""
    return [{"type": "text", "text": text}]


def rendered(tokenizer: Any, roles: Sequence[str], contents: Sequence[bool] = (False, True)) -> str:
    """A conversation in the chat template, after a system turn if it wants one; empty if not so.

    `contents` says whether content is given as parts; the first that the template reads counts.
    """
    for parted, system in itertools.product(contents, (False, True)):
        turns = [
            {"role": role, "content": in_parts(_CONTENT[role]) if parted else _CONTENT[role]}
            for role in (*["system"] * system, *roles)
        ]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception:  # templates raise whatever they like
            continue
        text = re.sub(f"(?i){_QUESTION}|{_REPLY}", lambda found: found[0].lower(), text)
        if _QUESTION in text:
            return text
    return ""


def _first_of(tokens: Sequence[str], text: str) -> str | None:
    """The token that comes first in a text, the longest of several; None without any."""
    places = [(text.find(token), -len(token), token) for token in tokens if token in text]
    return min(places)[2] if places else None


@functools.cache
def _warn_without_end(template: str) -> None:
    """Warn once of a chat template."""
    logger.warning(
        "the chat template puts no token after a reply, or cannot be used: a reply ends where the "
        "tokenizer or generation_config says, else at its longest. It begins: %s",
        " ".join(template[:60].split()),
    )


@contextmanager
def plain_generation(model: Any, ends: Ends) -> Iterator[None]:
    """Make `model.generate` follow its arguments alone, and stop where a text ends.

    Example:
        with plain_generation(model, ends_of(model, tokenizer)):
            model.generate(**inputs, max_new_tokens=64)   # greedy
    """
    from transformers import GenerationConfig

    ids = list(ends.ids)
    plain = GenerationConfig(**NEUTRAL, eos_token_id=ids or None, pad_token_id=(ids or [0])[0])
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    before, inner.generation_config = inner.generation_config, plain
    try:
        yield
    finally:
        inner.generation_config = before


def write_ends(model: Any, tokenizer: Any) -> None:
    """Write all ends into the model's `generation_config`, where other programs look for them.

    transformers saves a config that is invalid only as long as nothing in it changes. So settings
    that it calls invalid, such as a temperature without `do_sample`, are set to their defaults.
    """
    ids, settings = ends_of(model, tokenizer).ids, model.generation_config
    if settings is None or not ids:
        return
    settings.eos_token_id = list(ids) if len(ids) > 1 else ids[0]
    if dropped := _drop_invalid(settings):
        logger.warning(
            "the base's generation_config sets %s, which transformers calls invalid: not written",
            ", ".join(f"{name}={value!r}" for name, value in dropped.items()),
        )


def _drop_invalid(settings: Any) -> dict[str, Any]:
    """Set what transformers' validation lists to its default; return what was there."""
    from transformers import GenerationConfig

    try:
        settings.validate(strict=True)
    except ValueError as error:
        defaults = GenerationConfig()
        names = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
        dropped = {name: getattr(settings, name) for name in names}
        for name in names:
            setattr(settings, name, getattr(defaults, name))
        return dropped
    return {}


def sampling_arguments(temperature: float, top_p: float = 1.0) -> dict[str, Any]:
    """Arguments of `generate`: greedy at temperature 0, else sampled."""
    if temperature <= COLDEST:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p}


def warn_left_out(settings: Any, *, sampling: bool) -> None:
    """Warn of settings in a `GenerationConfig` of a base that would change text and are left out.

    Settings that change only sampled text count if it is sampled.
    """
    given = settings.to_diff_dict() if settings is not None else {}
    silent = _SILENT if sampling else _SILENT | _SAMPLING
    found = [
        f"{name}={value!r}"
        for name, value in sorted(given.items())
        if not (name in silent or name.startswith(("_", "output_", "return_")))
        and value not in (None, NEUTRAL.get(name))
    ]
    if found:
        logger.warning(
            "the base's generation_config sets %s: left out, the model alone decides",
            ", ".join(found),
        )
