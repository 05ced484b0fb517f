"""What cannot be read is refused, with what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skipgpt.data import (
    read_documents,
)
from skipgpt.errors import DataError
from texts import CONFIG, refusal, write, write_parquet, write_rows


@pytest.mark.parametrize(
    "source",
    ["nowhere", "./nowhere/at/all", "data/nothing.txt", "a/b/c", "~no-such-user/x", "x" * 5000],
)
def test_a_source_that_is_nowhere_is_refused_before_anything_is_read(
    tmp_path: Path, source: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_documents([str(tmp_path), source], CONFIG)
    assert repr(source) in caught.value.got
    assert "org/name" in caught.value.expected
    assert str(Path.cwd()) in caught.value.todo


def test_no_source_is_refused() -> None:
    assert "no source" in refusal().got


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    error = refusal(write(tmp_path / name, b""))
    assert error.got == "an empty file"
    assert name in error.doing


def test_a_file_of_nothing_but_white_space_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "a.txt", " \n\n")).got == "a file without text"
    assert refusal(write(tmp_path / "a.jsonl", '{"text": " "}')).got == "a file without text"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / ".hidden", "text")
    error = refusal(tmp_path)
    assert error.got == "a folder without text"
    assert str(tmp_path) in error.doing


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "a.txt", b"abc\0def"))
    assert "binary" in error.got
    assert "byte 3" in error.got
    assert "unpack" in error.todo


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"caf\xe9 au lait\n"), ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n')],
)
def test_another_encoding_is_refused_with_the_offset_of_the_byte(
    tmp_path: Path, name: str, content: bytes
) -> None:
    error = refusal(write(tmp_path / name, content))
    assert f"byte 0xe9 at offset {content.index(0xE9)}" in error.got
    assert "convert it to UTF-8, e.g. iconv -f latin1 -t utf-8" in error.todo


def test_the_offset_counts_the_byte_order_mark(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "a.txt", b"\xef\xbb\xbfcaf\xe9"))
    assert "offset 6" in error.got


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_utf_16_and_utf_32_are_refused_with_advice(
    tmp_path: Path, name: str, encoding: str
) -> None:
    path = write(tmp_path / name, '{"text": "a"}'.encode(encoding))
    for source in (path, tmp_path):
        error = refusal(source)
        assert encoding.upper() in error.got
        assert f"iconv -f {encoding} -t utf-8" in error.todo


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("{'text': 1}", "line 3, which is not JSON"),
        ("[1, 2]", "line 3, which holds a list"),
        ("[" * 100_000, "line 3, which is not JSON"),
        ('{"text": 5}', "line 3, where 'text' holds a number"),
        ('{"text": "\\ud800"}', "line 3 with half a surrogate pair"),
    ],
)
def test_a_damaged_json_line_is_named(tmp_path: Path, line: str, got: str) -> None:
    error = refusal(write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{line}\n'))
    assert got in error.got


def test_a_json_array_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "a.json", json.dumps([{"text": "a"}], indent=1)))
    assert "line 1" in error.got
    assert "jq -c '.[]'" in error.todo


def test_a_row_without_the_field_names_those_that_exist(tmp_path: Path) -> None:
    lines = write_rows(tmp_path / "a.jsonl", {"id": 1, "story": "Once.", "title": "T"})
    table = write_parquet(tmp_path / "a.parquet", id=[1], story=["Once."], title=["T"])
    for path, unit in ((lines, "line"), (table, "row")):
        error = refusal(path)
        assert error.got == f"{unit} 1 with the fields id, story, title"
        assert error.expected == "a field 'text'"
        assert error.todo.endswith("--text-field=story (text_field)")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "a.parquet", text=["some text"] * 100)
    for content in (whole.read_bytes()[:-20], b"not parquet at all"):
        error = refusal(write(tmp_path / "b.parquet", content))
        assert error.expected == "a whole parquet file"
        assert "b.parquet" in error.doing


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / name, "text")
    # The rights of the file itself would not stop root.
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for source in (path, tmp_path):
        error = refusal(source)
        assert error.got == "Permission denied"
        assert "permissions" in error.todo
