"""Texts of the harness as tokens, and tokens as text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from skipgpt.data.encoding import boundaries, control_tokens_of, have_control_tokens
from skipgpt.errors import ConfigError
from skipgpt.generation.stop_strings import StopText
from skipgpt.model.loading.generation_settings import Ends


def with_bos(tokenizer: Any, wanted: bool) -> Any:
    """The tokenizer, or a copy that puts BOS before a text where that is wanted.

    Raises:
        ConfigError: the tokenizer has no BOS that can be put there.
    """
    bos = tokenizer.bos_token_id

    def has_it(tokenizer: Any) -> bool:
        return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]

    if has_it(tokenizer) == wanted or not wanted:  # left out by the harness, text by text
        return tokenizer
    made = copy.deepcopy(tokenizer)
    if bos is not None and made.is_fast:
        from tokenizers.processors import TemplateProcessing

        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{made.bos_token} $A",
            pair=f"{made.bos_token} $A {made.bos_token} $B",
            special_tokens=[(made.bos_token, bos)],
        )
    if not has_it(made):
        raise ConfigError(
            "reading add_bos_token",
            got="true",
            expected="false: this tokenizer has no BOS that can be put before a text",
            todo="leave it out",
        )
    return made


class EncodingLM(HFLM):  # type: ignore[misc]
    """The harness's model, with what stands before a document once, and ends where its texts end.

    A text without context is predicted from the tokens `before`.
    """

    add_bos_token: bool | None
    before: list[int]
    ends: Ends

    def tok_encode(self, string: str, **options: Any) -> list[int]:
        """Encode a text, with what the tokenizer puts before it unless a template has put it."""
        if options.get("add_special_tokens") is None and self._has_prefix(string):
            options["add_special_tokens"] = False
        return list(super().tok_encode(string, **options))

    def tok_batch_encode(
        self, strings: list[str], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Encode texts as `tok_encode` does, padded to one length."""
        adds = self.add_bos_token
        if self._has_prefix(strings[0]):
            self.add_bos_token = False
        try:
            ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
        finally:
            self.add_bos_token = adds
        return ids, mask

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Decode tokens, up to the first of the base's own stop strings."""
        text = str(super().tok_decode(tokens, skip_special_tokens))
        if not skip_special_tokens:
            return text
        stops = self.ends.strings
        if not have_control_tokens(self.tokenizer, stops):
            return _before_stop(text, stops)
        text = _before_stop(str(super().tok_decode(tokens, False)), stops)
        for token in control_tokens_of(self.tokenizer):
            text = text.replace(token, "")
        return text

    def _has_prefix(self, text: str) -> bool:
        """Whether a chat template wrote the tokens before a document into a text."""
        own = self.tokenizer.decode(boundaries(self.tokenizer).before)
        return bool(own) and text.startswith(own)


def _before_stop(text: str, stops: Sequence[str]) -> str:
    reading = StopText(stops)
    return reading.add(text) + reading.rest()
