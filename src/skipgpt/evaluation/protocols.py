"""Evaluation protocols for loss on a text. Their numbers differ, so a result names its form.

blocks    documents as one stream, in rows without context before them; all rows
fixed     the text as one stream, in full windows, the remainder left out, as in pruning papers
sliding   overlapping windows; each token is scored once, with much context
bits      each document by itself after a prefix token, all tokens; bits per UTF-8 byte
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from skipgpt.config import DataConfig
from skipgpt.config.checks import check_choice
from skipgpt.data import read_documents
from skipgpt.data.encoding import boundaries, encode, encode_whole
from skipgpt.data.sources import check_limit
from skipgpt.errors import ConfigError
from skipgpt.evaluation.corpora import corpus_of, corpus_text
from skipgpt.evaluation.source_rows import source_rows
from skipgpt.evaluation.windows import (
    Span,
    batches,
    document_spans,
    full_windows,
    one_or_more,
    sliding_spans,
    within_context,
)
from skipgpt.model.loading.limits import check_ids, context_of

logger = logging.getLogger("skipgpt")

FormName = Literal["blocks", "fixed", "sliding", "bits"]
WINDOW = 2048
"""The window of most pruning papers."""


@dataclass(frozen=True)
class Form:
    """How a text is cut and what is scored.

    Attributes:
        name: name of the form.
        window: tokens per row; 0 is the form's own: 256 for `blocks`, 2,048 for `fixed` and
            `sliding`, the model's context for `bits`.
        stride: stride of `sliding`; 0 is half a window.

    Raises:
        ConfigError: an unknown form, or numbers that do not fit it.
    """

    name: FormName = "blocks"
    window: int = 0
    stride: int = 0

    def __str__(self) -> str:
        every = f" every {self.stride:,}" if self.stride else ""
        return f"{self.name}, rows of {self.window:,} tokens{every}"

    def __post_init__(self) -> None:
        doing = "choosing the form"
        check_choice(doing, self.name, get_args(FormName))
        if self.window < 0 or self.window == 1:
            raise ConfigError(
                doing, got=f"a window of {self.window}", expected="2 or more tokens; 0 is its own"
            )
        if self.stride < 0 or (self.stride and self.name != "sliding"):
            raise ConfigError(
                doing,
                got=f"a stride of {self.stride} with {self.name}",
                expected="a positive one, with sliding",
            )


@dataclass(frozen=True, eq=False)
class CutText:
    """A text as a model will read it.

    Attributes:
        form: the form in which it was cut.
        spans: rows, and where scoring begins in each.
        source: where a corpus came from; None for other text.
        bytes: UTF-8 bytes of all documents, for `bits`; else 0.
        first: tokens that `max_tokens` left of the text; 0 if it left all.
        inside: rows of `blocks` that begin inside a document.
    """

    form: Form
    spans: list[Span]
    source: str | None = None
    bytes: int = 0
    first: int = 0
    inside: int = 0

    @property
    def said(self) -> str:
        """What is read, in a sentence."""
        read = sum(len(span.ids) for span in self.spans)
        rows = f"{len(self.spans):,} row{'s' * (len(self.spans) != 1)}"
        what = f"{read:,} tokens"
        if self.first:
            some = f"{what} of the first {self.first:,}"
            what = f"the first {what}" if read == self.first else some
        inside = f", {self.inside:,} from inside a document" if self.inside else ""
        return f"reading {what} in {rows}, each without context{inside}; form: {self.form}"

    def first_rows(self, count: int) -> Tensor:
        """Return the first rows, [B, T]: those of equal length, at most `count`."""
        return next(batches([span.ids for span in self.spans], count))


def cut_text(
    sources: Sequence[str],
    tokenizer: Any,
    model: Any,
    form: Form,
    *,
    corpus: str | None = None,
    config: DataConfig | None = None,
    max_tokens: int = 0,
) -> CutText:
    """Read a text and cut it into rows.

    Args:
        sources: as for `skipgpt.data.read_documents`; for a corpus none, or its local file.
        tokenizer: the base model's tokenizer.
        model: the model that will read it; a window longer than its context is cut down to that.
        form: how the text is cut.
        corpus: `wikitext2` or `ptb`: its test split, joined as pruning papers join it.
        config: `max_documents`, `text_field` and `control_tokens`.
        max_tokens: read no more than this of the stream; 0 reads all. Not for `bits`.

    Raises:
        ConfigError: settings that do not fit together.
        DataError: a source cannot be read, or there is too little text.
        MissingExtraError: a corpus from the hub without the extra `data`.

    Example:
        cut_text([], tokenizer, model, Form("fixed", 4096), corpus="wikitext2")
    """
    config = config or DataConfig()
    _check(form, corpus, max_tokens)
    if form.name == "blocks":
        config = dataclasses.replace(config, block_size=form.window or config.block_size)
        read = source_rows(sources, tokenizer, model, config, max_tokens=max_tokens)
        spans = [Span(row) for row in read.rows]
        return CutText(Form("blocks", read.length), spans, first=read.first, inside=read.inside)
    usual = context_of(model) or WINDOW if form.name == "bits" else WINDOW
    form = dataclasses.replace(form, window=within_context(model, form.window or usual))
    if form.name == "bits":
        cut = _bits(_texts(sources, config), tokenizer, form, config.control_tokens)
        check_ids("reading the text", model, tokenizer, torch.cat([span.ids for span in cut.spans]))
        return cut
    if corpus is None:
        text, source = "\n\n".join(_texts(sources, config)), None
    else:
        text, source = corpus_text(corpus, list(sources))
    # With the tokenizer's special tokens around the text, as in the papers' code.
    encoded = encode_whole(tokenizer, text, control_tokens=config.control_tokens)
    ids = torch.tensor(encoded, dtype=torch.int64)
    first = max_tokens if 0 < max_tokens < len(ids) else 0
    ids = ids[: first or None]
    check_ids("reading the text", model, tokenizer, ids)
    if form.name == "fixed":
        spans = [Span(row) for row in full_windows(ids, form.window)]
    else:
        form = dataclasses.replace(form, stride=form.stride or form.window // 2)
        spans = one_or_more(sliding_spans(ids, form.window, form.stride), len(ids))
    return CutText(form, spans, source, first=first)


def _check(form: Form, corpus: str | None, max_tokens: int) -> None:
    if max_tokens < 0 or (max_tokens and form.name == "bits"):
        raise ConfigError(
            "reading max_tokens",
            got=f"{max_tokens} with {form.name}",
            expected="0 (all) or more; 0 with bits, whose documents stay whole",
        )
    if corpus is not None:
        corpus_of(corpus)
        if form.name in ("blocks", "bits"):
            raise ConfigError(
                "choosing the form",
                got=f"{form.name} of the corpus {corpus}",
                expected="fixed or sliding: papers quote it as one stream",
            )


def _bits(texts: Sequence[str], tokenizer: Any, form: Form, control_tokens: bool) -> CutText:
    """Cut each document by itself; those longer than a window are read in several rows."""
    before = boundaries(tokenizer).prefix
    options = {"control_tokens": control_tokens, "add_special_tokens": False, "verbose": False}
    documents = [
        torch.tensor([*before, *encode(tokenizer, text, **options)["input_ids"]]) for text in texts
    ]
    if cut := sum(len(ids) > form.window for ids in documents):
        logger.warning(
            "%d of %d documents are longer than %d tokens: read in several rows, each from the "
            "last token of the one before",
            cut,
            len(documents),
            form.window,
        )
    spans = [span for ids in documents for span in document_spans(ids, form.window, len(before))]
    spans.sort(key=lambda span: len(span.ids))  # rows of one length share a forward
    some = one_or_more(spans, sum(map(len, documents)))
    return CutText(form, some, bytes=sum(len(text.encode()) for text in texts))


def _texts(sources: Sequence[str], config: DataConfig) -> list[str]:
    """Return the documents of sources; a text file is one document, whatever its length."""
    whole = "--max-documents (max_documents): this form reads every document before it cuts any"
    check_limit(sources, config.max_documents, whole)
    return [document.text for document in read_documents(sources, config, sections=False)]
