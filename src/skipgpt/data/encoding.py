"""Text -> token ids: where a document begins, and control tokens that stand in text.

Control tokens are the special tokens of a tokenizer, such as `<|endoftext|>`, and those that its
chat template writes around turns, which some tokenizers do not call special. Where they stand in a
document, a prompt or a message, they are text, unless the caller asks for control tokens: a
document cannot end itself, and a message cannot end its turn.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from skipgpt.data.documents import END_OF_TEXT
from skipgpt.model.loading.generation_settings import rendered

ROLE_MARKERS = frozenset(
    {"<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
     "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"}
)  # fmt: skip
"""Tokens that begin or end a turn of a chat, also where a tokenizer has no template to tell."""

_ENCODING = threading.Lock()
"""Needed because a fast tokenizer holds as state whether control tokens are text."""


HALF_A_PAIR = "a surrogate stands alone"


def has_surrogates(text: str) -> bool:
    r"""Whether a string has half a surrogate pair, so that no UTF-8 text and no token is like it.

    Example:
        >>> has_surrogates("caf\udce9")
        True
    """
    return not text.isascii() and re.search(r"[\ud800-\udfff]", text) is not None


class Boundaries(NamedTuple):
    """Token ids that stand around every document.

    Attributes:
        before: those before each document.
        after: those after each document; empty where there are some before it.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def prefix(self) -> list[int]:
        """The tokens after which a text that stands alone is predicted."""
        return [*self.before] or [*self.after[-1:]]


def boundaries(tokenizer: Any) -> Boundaries:
    """The token ids around every document.

    They are what the tokenizer itself puts before any text, such as BOS; a prompt begins with it,
    too. If it puts nothing there, they are its BOS before or else its EOS after every document, but
    never a token that begins or ends a turn of a chat: instruct models often have one as their BOS
    or EOS, and then `<|endoftext|>` stands before every document if the tokenizer has it.
    """
    if own := _around_any_text(tokenizer)[0]:
        return Boundaries(before=own)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and not _role_markers(tokenizer, [tokenizer.bos_token]):
        return Boundaries(before=(bos,))
    if eos is not None and not _role_markers(tokenizer, [tokenizer.eos_token]):
        return Boundaries(after=(eos,))
    if (bos, eos) != (None, None) and END_OF_TEXT in control_tokens_of(tokenizer):
        return Boundaries(before=(tokenizer.convert_tokens_to_ids(END_OF_TEXT),))
    return Boundaries()


def control_tokens_of(tokenizer: Any) -> set[str]:
    """The special tokens of a tokenizer and those around turns of a chat, as they are written."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(each.content for each in added if each.special)}
    return special.union(_role_markers(tokenizer, [each.content for each in added]) - special)


def have_control_tokens(tokenizer: Any, stops: Sequence[str]) -> bool:
    """Whether a stop string holds a control token and other letters, so that no text matches it."""
    controls = control_tokens_of(tokenizer)
    return any(token in stop != token for stop in stops for token in controls)


def encode(
    tokenizer: Any, text: str | Sequence[str], *, control_tokens: bool = False, **options: Any
) -> Any:
    """Call a tokenizer; control tokens that are written in the text are text unless asked for."""
    texts = [text] if isinstance(text, str) else list(text)
    if not control_tokens:
        tokenizer = _splitting_role_markers(tokenizer, texts)
    given = text if isinstance(text, str) else texts
    with _ENCODING:
        return tokenizer(given, split_special_tokens=not control_tokens, **options)


def encode_whole(tokenizer: Any, text: str, *, control_tokens: bool = False) -> list[int]:
    """The token ids of a text: as a prompt, and then what the tokenizer puts behind any text."""
    ids = encode_prompt(tokenizer, text, control_tokens=control_tokens)
    return [*ids, *_around_any_text(tokenizer)[1]]


def encode_prompt(tokenizer: Any, prompt: str, *, control_tokens: bool = False) -> list[int]:
    """The token ids of a prompt: what the tokenizer puts before any text, then the text.

    Nothing stands behind it, also where the tokenizer ends texts: a prompt goes on. With
    `control_tokens`, a prompt that begins with one of the tokens before a text gets no others.
    """
    before, _ = _around_any_text(tokenizer)
    options = {"add_special_tokens": False, "verbose": False}
    ids = encode(tokenizer, prompt, control_tokens=control_tokens, **options)["input_ids"]
    if control_tokens and ids and ids[0] in before:
        return [*ids]
    return [*before, *ids]


def encode_chat(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    *,
    control_tokens: bool = False,
    **options: Any,
) -> list[int]:
    """The token ids of a chat, in which the template alone writes control tokens.

    Where no message contains one, or they count as such, this is transformers'
    `apply_chat_template`, with its options. Else those in messages are broken up before the
    template is applied, and put together again afterwards. Whatever the template raises is passed
    on.
    """
    controls = sorted(control_tokens_of(tokenizer), key=len, reverse=True)
    written = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
    texts = list(_strings(messages))
    if control_tokens or not any(map(written.search, texts)):
        with _ENCODING:
            found = tokenizer.apply_chat_template(list(messages), return_dict=True, **options)
        return list(found["input_ids"])
    unused = (c for c in map(chr, range(0xE000, 0xF8FF)) if not any(c in t for t in texts))
    breaker, mark = next(unused), next(unused)

    def broken(text: str) -> str:
        return written.sub(lambda found: breaker.join(found[0]), text)

    rendered: str = tokenizer.apply_chat_template(
        [_mapped(each, broken) for each in messages], tokenize=False, **options
    )
    if tokenizer.is_fast:
        marked = written.sub(lambda found: f"{mark}{found[0]}{mark}", rendered)
        return _encode_marked(tokenizer, marked.replace(breaker, ""), mark)
    ids: list[int] = []
    done = 0
    for found in [*written.finditer(rendered), None]:
        piece = rendered[done : found.start() if found else None].replace(breaker, "")
        if piece:
            ids += encode(tokenizer, piece, add_special_tokens=False)["input_ids"]
        if found:
            ids.append(tokenizer.convert_tokens_to_ids(found[0]))
            done = found.end()
    return ids


def _encode_marked(tokenizer: Any, text: str, mark: str) -> list[int]:
    """The ids of a text in which control tokens count as such only between two marks.

    A copy of the tokenizer knows them by their marked names alone. So the text is read in one
    piece, and spaces around a control token are what the tokenizer makes of them.
    """
    from tokenizers import Tokenizer

    held = json.loads(tokenizer.backend_tokenizer.to_str())
    held |= {"post_processor": None, "truncation": None, "padding": None}
    controls = control_tokens_of(tokenizer)
    for token in held["added_tokens"]:
        if token["content"] in controls:
            token["content"] = f"{mark}{token['content']}{mark}"
    marked = Tokenizer.from_str(json.dumps(held))
    own = {marked.token_to_id(token["content"]): token["id"] for token in held["added_tokens"]}
    return [own.get(each, each) for each in marked.encode(text, add_special_tokens=False).ids]


def _around_any_text(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The token ids that a tokenizer itself puts before any text, and those behind it."""
    ids, bare = (
        list(encode(tokenizer, "a", control_tokens=True, add_special_tokens=adds)["input_ids"])
        for adds in (True, False)
    )
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : (end := start + len(bare))] == bare:
            return tuple(ids[:start]), tuple(ids[end:])
    return (), ()


def _role_markers(tokenizer: Any, tokens: Sequence[str]) -> set[str]:
    """Those tokens that begin or end turns of a chat; `<|endoftext|>` ends documents, too."""
    tokens = [token for token in tokens if token.strip() and token != END_OF_TEXT]
    found = ROLE_MARKERS.intersection(tokens)
    if not tokens or not tokenizer.chat_template:
        return set(found)
    chat = rendered(tokenizer, ("user", "assistant", "user"))
    return {*found, *(token for token in tokens if chat.count(token) > 1)}


def _splitting_role_markers(tokenizer: Any, texts: Sequence[str]) -> Any:
    """The tokenizer, or a copy that takes for special what ends turns and stands in these texts.

    `split_special_tokens` breaks up special tokens alone.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    plain = [each.content for each in added if not each.special]
    if not plain or not tokenizer.is_fast:
        return tokenizer
    # Some tokenizers have thousands of added tokens, of which a template writes a few.
    written = _role_markers(tokenizer, plain)
    markers = {token for token in written if any(token in text for text in texts)}
    if not markers:
        return tokenizer
    from tokenizers import AddedToken

    made = copy.deepcopy(tokenizer)
    tokens = [AddedToken(each, special=True, normalized=False) for each in sorted(markers)]
    made.backend_tokenizer.add_special_tokens(tokens)
    return made


def _strings(value: Any) -> Any:
    """Every text in nested lists and dicts, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _mapped(value: Any, change: Any) -> Any:
    """The same lists and dicts with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(each, change) for each in value]
    return value
