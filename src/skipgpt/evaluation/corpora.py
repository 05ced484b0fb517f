"""The two corpora whose perplexity papers quote, joined as those papers join them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipgpt.data.decoding import read_text
from skipgpt.data.rows import json_rows
from skipgpt.data.sources import JSON_LINES
from skipgpt.errors import ConfigError, DataError, MissingExtraError

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

    def row(self, line: str) -> str:
        """Return the row that the hub's data set makes of a line of the original file."""
        return line.strip() if self.bare else line if line.strip() else ""

    def join(self, rows: Iterable[str]) -> str:
        """Join all rows into the text that is tokenised."""
        return self.glue.join(rows)


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
    """The corpus of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CORPORA:
        raise ConfigError("choosing the corpus", got=repr(name), expected=" or ".join(CORPORA))
    return CORPORA[name]


def corpus_text(name: str, files: list[str]) -> tuple[str, str]:
    """Return a corpus as one text, and where it came from.

    Args:
        name: `wikitext2` or `ptb`.
        files: none to take it from the hub, or one: the original text file, or JSONL or parquet
            with the field of the hub's data set.

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
        return corpus.join(_from_hub(corpus, name)), f"{name}, hub: {corpus.hub}"
    path = Path(files[0]).expanduser()
    if not path.is_file():
        raise DataError(
            f"reading the corpus {name}", got=f"no file {path}", expected="its test split"
        )
    return corpus.join(_rows(corpus, path)), f"{name}, local file: {path.name}"


def _rows(corpus: Corpus, path: Path) -> list[str]:
    doing = f"reading {path}"
    if path.suffix.lower() in JSON_LINES:
        return [_text(corpus, row, doing) for _, row in json_rows(path)]
    if path.suffix.lower() == ".parquet":
        try:
            rows = _loaded(doing, path="parquet", data_files=str(path), split="train")
        except _LoadingError as error:
            raise DataError(
                doing, got=str(error), expected="a parquet file", todo=_AS_PUBLISHED
            ) from error
        return [_text(corpus, row, doing) for row in rows]
    return [corpus.row(line) for line in read_text(path).splitlines(keepends=True)]


def _text(corpus: Corpus, row: dict[str, Any], doing: str) -> str:
    if not isinstance(row.get(corpus.field), str):
        raise DataError(
            doing,
            got=f"a row with the fields {', '.join(row) or '(none)'}",
            expected=f"text in a field {corpus.field!r}, as the hub has it ({corpus.hub})",
            todo=_AS_PUBLISHED,
        )
    return str(row[corpus.field])


def _from_hub(corpus: Corpus, name: str) -> list[str]:
    doing = f"fetching the corpus {name}"
    try:
        rows = _loaded(doing, **corpus.load)
    except _LoadingError as error:
        raise DataError(
            doing,
            got=str(error),
            expected=corpus.hub,
            todo="check the network and HF_HUB_OFFLINE, or give its file with --text",
        ) from error
    return [_text(corpus, row, doing) for row in rows]


class _LoadingError(Exception):
    """What the hub's client or a reader said, in a line."""


def _loaded(doing: str, **arguments: Any) -> Iterable[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", doing) from error
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(**arguments)
    except Exception as error:  # from the hub's client or readers
        first = (str(error).splitlines() or [""])[0]
        raise _LoadingError(f"{type(error).__name__}: {first}") from error
    return rows
