"""The two corpora whose perplexity papers quote, joined as those papers join them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipgpt.config.checks import check_choice
from skipgpt.data.decoding import JSON_LINES, first_line, is_nameless, joined_text, read_text
from skipgpt.data.rows import guarded, import_extra, is_json_object, json_rows
from skipgpt.errors import ConfigError, DataError

PARQUET = (
    "hf://datasets/ptb-text-only/ptb_text_only@refs/convert/parquet/penn_treebank/test/*.parquet"
)

_AS_PUBLISHED = "give the corpus as it was published, or any other text without --corpus"


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies on the hub, and how its rows become one text.

    Attributes:
        hub: name on the hub, for messages.
        load: arguments of `datasets.load_dataset` for its test split.
        field: field of a row that holds its text.
        glue: separator between rows.
        bare: whether rows are stripped of white space; otherwise they keep their line ends.
    """

    hub: str
    load: dict[str, Any]
    field: str
    glue: str
    bare: bool


CORPORA = {
    "wikitext2": Corpus(
        "Salesforce/wikitext, wikitext-2-raw-v1, test",
        {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "test"},
        field="text",
        glue="\n\n",
        bare=False,
    ),
    "ptb": Corpus(
        "ptb-text-only/ptb_text_only, penn_treebank, test",
        {"path": "parquet", "data_files": {"test": PARQUET}, "split": "test"},
        field="sentence",
        glue=" ",
        bare=True,
    ),
}


def corpus_of(name: str) -> Corpus:
    """The corpus of this name; a ConfigError if there is none."""
    return CORPORA[check_choice("choosing the corpus", name, CORPORA)]


def corpus_text(name: str, files: list[str]) -> tuple[str, str]:
    """Return a corpus as one text, and where it came from.

    Args:
        name: `wikitext2` or `ptb`.
        files: none to take it from the hub, or one: the original text, or JSONL or parquet with
            the field of the hub's data set; text and JSONL may come through a pipe.

    Raises:
        ConfigError: no such corpus, or several files.
        DataError: it cannot be loaded.
        MissingExtraError: the hub or parquet without the extra `data`.

    Example:
        text, source = corpus_text("wikitext2", ["wiki.test.raw"])
    """
    corpus = corpus_of(name)
    if len(files) > 1:
        raise ConfigError(
            f"reading the corpus {name}", got=f"{len(files)} files", expected="its test split alone"
        )
    if not files:
        doing, source = f"fetching the corpus {name}", f"hub: {corpus.hub}"
        todo = "check the network and HF_HUB_OFFLINE, or give its file with --text"
        rows = _texts(corpus, _loaded(doing, corpus.hub, todo=todo, **corpus.load), doing)
    else:
        path = Path(files[0]).expanduser()
        if not os.path.exists(path) or os.path.isdir(path):
            raise DataError(
                f"reading the corpus {name}", got=f"no file {path}", expected="its test split"
            )
        rows, source = _rows_of_file(corpus, path), f"local file: {path.name}"
    return corpus.glue.join(rows), f"{name}, {source}"


def _rows_of_file(corpus: Corpus, path: Path) -> list[str]:
    """Return the rows that the hub's data set makes of the original file, or has in others."""
    doing = f"reading {path}"
    if path.suffix.lower() == ".parquet":
        options = {"path": "parquet", "data_files": str(path), "split": "train"}
        return _texts(
            corpus, _loaded(doing, "a parquet file", todo=_AS_PUBLISHED, **options), doing
        )
    first, lines = first_line(path) if is_nameless(path) else (b"", None)
    if path.suffix.lower() in JSON_LINES or is_json_object(first):
        return _texts(corpus, (row for _, row in json_rows(path, lines)), doing)
    text = read_text(path) if lines is None else joined_text(path, lines)
    rows = text.splitlines(keepends=True)
    return [row.strip() if corpus.bare else row if row.strip() else "" for row in rows]


def _texts(corpus: Corpus, rows: Iterable[dict[str, Any]], doing: str) -> list[str]:
    texts = []
    for row in rows:
        if not isinstance(row.get(corpus.field), str):
            raise DataError(
                doing,
                got=f"a row with the fields {', '.join(row) or '(none)'}",
                expected=f"text in a field {corpus.field!r}, as the hub has it ({corpus.hub})",
                todo=_AS_PUBLISHED,
            )
        texts.append(str(row[corpus.field]))
    return texts


def _loaded(doing: str, expected: str, *, todo: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    datasets = import_extra("datasets", doing)

    def rows() -> Iterator[dict[str, Any]]:
        yield from datasets.load_dataset(**arguments)

    return guarded(rows(), doing, expected=expected, todo=todo)
