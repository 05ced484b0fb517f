"""What a pipe holds is told by its first line, and no more is read than memory can hold."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from skipgpt.config import DataConfig
from skipgpt.data import decoding, read_documents
from skipgpt.errors import ConfigError
from skipgpt.system.stopping import Stop, handling, stop_now
from texts import SENTENCE, piped, read, refusal, texts, write, write_rows

ROWS = [b'{"id": 1, "body": "One.\\nStill one."}\n', b"\n", b'{"id": 2, "body": "Two."}']
DESCRIPTORS = pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no /dev/fd here")


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.jsonl"])
@pytest.mark.parametrize("begin", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_json_lines_are_rows_whatever_the_pipe_is_called(
    tmp_path: Path, name: str, begin: bytes
) -> None:
    with piped(tmp_path / name, [begin, *ROWS]) as pipe:
        found = read(pipe, text_field="body")
    assert [document.text for document in found] == ["One.\nStill one.", "Two."]
    line = 3 + begin.count(b"\n")
    assert [document.name for document in found][1] == f"{name}, line {line}"


@DESCRIPTORS
def test_json_lines_are_rows_through_a_descriptor(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b"".join(ROWS))
    reader, writer = os.pipe()
    os.write(writer, b"".join(ROWS))
    os.close(writer)
    with path.open() as file:
        for number in (reader, file.fileno()):  # `cat rows.jsonl |` and `< rows.jsonl`
            assert texts(f"/dev/fd/{number}", text_field="body") == ["One.\nStill one.", "Two."]
    os.close(reader)


@pytest.mark.parametrize(
    "text", ["{% if a %}\nb", "[1, 2]\nb", "5\n", "{'a': 1}\n", "\n\n" + SENTENCE, "\n" * 200 + "a"]
)
def test_another_first_line_is_of_plain_text(tmp_path: Path, text: str) -> None:
    with piped(tmp_path / "pipe", [text.encode()]) as pipe:
        assert texts(pipe) == [text]


def test_an_empty_pipe_holds_no_text(tmp_path: Path) -> None:
    for field in ("text", "body"):
        with piped(tmp_path / "pipe", []) as pipe:
            assert refusal(pipe, text_field=field).got == "a file without text"


def test_rows_of_a_pipe_without_the_field_name_those_that_exist(tmp_path: Path) -> None:
    with piped(tmp_path / "pipe", ROWS) as pipe:
        error = refusal(pipe)
    assert error.got == "line 1 with the fields id, body"
    assert "--text-field=body" in error.todo


def refuses_the_field(source: object) -> None:
    with pytest.raises(ConfigError, match=r"field 'body' of plain text.*leave out --text-field"):
        list(read_documents([str(source)], DataConfig(text_field="body")))


def test_a_field_of_plain_text_is_refused_through_a_pipe_too(tmp_path: Path) -> None:
    with piped(tmp_path / "pipe", [b"no rows\n", *ROWS]) as pipe:
        refuses_the_field(pipe)


@DESCRIPTORS
def test_a_field_of_plain_text_is_refused_through_a_descriptor_too(tmp_path: Path) -> None:
    with write(tmp_path / "a.txt", SENTENCE).open() as file:
        refuses_the_field(f"/dev/fd/{file.fileno()}")


def test_a_field_of_a_folder_of_plain_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", SENTENCE)
    write_rows(tmp_path / ".hidden" / "a.jsonl", {"body": "not read"})
    refuses_the_field(tmp_path)
    write_rows(tmp_path / "b.jsonl", {"body": "read"})
    assert texts(tmp_path, text_field="body") == [SENTENCE, "read"]


@pytest.mark.parametrize(
    ("name", "part"), [("pipe", b"text\n"), ("pipe", b"{"), ("a.jsonl", b"{"), ("pipe", b"\n")]
)
def test_text_or_a_line_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: bytes
) -> None:
    monkeypatch.setattr(decoding, "PART", 100)
    monkeypatch.setattr(decoding, "MOST_PIPED", 10_000)
    with piped(tmp_path / name, itertools.repeat(part)) as pipe:
        error = refusal(pipe)
    assert "more than 10,000 bytes" in error.got
    assert "to a file" in error.todo


@pytest.mark.parametrize("part", [b"text\n", b"x"])
def test_a_signal_is_answered_while_a_pipe_is_read(tmp_path: Path, part: bytes) -> None:
    given = 0

    def parts() -> Iterator[bytes]:
        nonlocal given
        for number in range(200):
            if number == 20:
                os.kill(os.getpid(), signal.SIGTERM)
            given += 1
            yield part * (1024 * 1024 // len(part))

    with (
        piped(tmp_path / "pipe", parts()) as pipe,
        handling(stop_now),
        pytest.raises(Stop, match="SIGTERM"),
    ):
        read(pipe)
    assert given < 100
