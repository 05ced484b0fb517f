"""Texts of the harness as tokens, and tokens as text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from skipgpt.data.encoding import control_tokens_of, encode, encode_prompt, have_control_tokens
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

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> list[int]:
        """Encode a text as a prompt, without what the tokenizer puts before it if so asked."""
        begins = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if begins is False:
            bare = {"add_special_tokens": False, "verbose": False}
            ids = list(encode(self.tokenizer, string, control_tokens=True, **bare)["input_ids"])
        else:
            ids = encode_prompt(self.tokenizer, string, control_tokens=True)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: Literal["left", "right"] = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode texts as `tok_encode` does; return ids and mask, [B, T], padded to one length.

        An empty text becomes the tokens `before`.
        """
        encoded = (self.tok_encode(each, None, left_truncate_len) for each in strings)
        rows = [torch.tensor(ids or self.before) for ids in encoded]
        padded = partial(pad_sequence, batch_first=True, padding_side=padding_side)
        ids = padded(rows, padding_value=self.tokenizer.pad_token_id)
        return ids, padded([torch.ones_like(row) for row in rows])

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


def _before_stop(text: str, stops: Sequence[str]) -> str:
    reading = StopText(stops)
    return reading.add(text) + reading.rest()
