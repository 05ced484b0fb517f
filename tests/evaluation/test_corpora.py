"""Published corpora are read as they were published."""

import json
from pathlib import Path
from typing import Any

import pytest

from skipgpt.errors import DataError
from skipgpt.evaluation.corpora import corpus_text
from texts import piped, write


def test_wikitext2_lines_become_the_rows_of_the_hub_and_are_joined_by_blank_lines(
    tmp_path: Path,
) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(" \n = Title = \n \n A line .\n")
    rows = ["", " = Title = \n", "", " A line .\n"]
    text, source = corpus_text("wikitext2", [str(path)])
    assert text == "\n\n".join(rows)
    assert source == "wikitext2, local file: wiki.test.raw"
    jsonl = tmp_path / "test.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    assert corpus_text("wikitext2", [str(jsonl)])[0] == text


def test_ptb_sentences_are_joined_by_spaces(tmp_path: Path) -> None:
    path = tmp_path / "ptb.test.txt"
    path.write_text(" no it was n't black monday \n but while the <unk>\n")
    text, _ = corpus_text("ptb", [str(path)])
    assert text == "no it was n't black monday but while the <unk>"


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no /dev/fd here")
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("wiki.raw", " \n = Title = \n A line .\n", "\n\n = Title = \n\n\n A line .\n"),
        ("wiki.jsonl", '{"text": "a"}\n{"text": "b"}\n', "a\n\nb"),
    ],
)
def test_a_corpus_is_read_alike_from_a_file_a_descriptor_and_a_pipe(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    path = write(tmp_path / name, content)
    assert corpus_text("wikitext2", [str(path)])[0] == expected
    with path.open() as file:
        assert corpus_text("wikitext2", [f"/dev/fd/{file.fileno()}"])[0] == expected
    for pipe_name in ("pipe", f"pipe{path.suffix}"):
        with piped(tmp_path / pipe_name, [content.encode()]) as pipe:
            assert corpus_text("wikitext2", [str(pipe)])[0] == expected


def test_a_corpus_of_no_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="got no file"):
            corpus_text("wikitext2", [str(path)])


def test_parquet_of_the_hub_is_read_as_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "test.parquet"
    parquet.write_table(pyarrow.table({"sentence": ["one two", "three"]}), path)
    assert corpus_text("ptb", [str(path)])[0] == "one two three"


@pytest.mark.parametrize("column", [{"story": ["a"], "id": [1]}, {"text": [1], "id": [1]}])
def test_a_local_corpus_of_other_fields_is_not_looked_for_in_the_network(
    column: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    table, lines = tmp_path / "test.parquet", tmp_path / "test.jsonl"
    parquet.write_table(pyarrow.table(column), table)
    lines.write_text(json.dumps({name: values[0] for name, values in column.items()}))
    said = []
    for path in (table, lines):
        with pytest.raises(DataError, match="text in a field 'text', as the hub has it") as caught:
            corpus_text("wikitext2", [str(path)])
        said.append(str(caught.value).replace(str(path), "PATH"))
    assert said[0] == said[1]
    assert said[0].endswith(
        "; give the corpus as it was published, or any other text without --corpus"
    )


def test_a_damaged_local_corpus_is_not_looked_for_in_the_network(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="expected a parquet file; give the corpus"):
        corpus_text("wikitext2", [str(path)])
