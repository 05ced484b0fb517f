"""What a pipe holds is told by its first line, and no more is read than memory can hold."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from skipgpt.config import DataConfig
from skipgpt.data import decoding, load_blocks, read_documents
from skipgpt.errors import ConfigError
from skipgpt.system.stopping import Stop, handling, stop_now
from texts import CONFIG, SENTENCE, piped, read, refusal, texts, write, write_rows
from tiny import byte_tokenizer

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


@pytest.mark.parametrize("begin", ['{"version": 3}\n', '{"text": "a"}\n', '{"version": "3"}\n'])
def test_text_that_begins_with_an_object_may_be_written_to_a_file(
    tmp_path: Path, begin: str
) -> None:
    text = begin + "The log.\n"
    with piped(tmp_path / "pipe", [text.encode()]) as pipe:
        assert refusal(pipe).todo.endswith("if it is text, write it to a file that ends in .txt")
    with piped(tmp_path / "rows.jsonl", [text.encode()]) as pipe:
        assert ".txt" not in refusal(pipe).todo
    assert texts(write(tmp_path / "log.txt", text)) == [text]


def test_plain_text_through_a_pipe_is_split_and_read_whole_as_its_file_is(tmp_path: Path) -> None:
    text = "".join(f"{number}. {SENTENCE}\n" for number in range(4000))
    path = write(tmp_path / "a.txt", text)
    few = dataclasses.replace(CONFIG, calibration_tokens=64, evaluation_tokens=64)
    of_file = load_blocks([str(path)], byte_tokenizer(), few, train_tokens=64)
    with piped(tmp_path / "pipe", [text.encode()]) as pipe:
        of_pipe = load_blocks([str(pipe)], byte_tokenizer(), few, train_tokens=64)
    assert of_pipe.fingerprint == of_file.fingerprint
    assert of_pipe.documents == of_file.documents
    tokens = sum(len(rows) for rows in (of_pipe.train, of_pipe.calibration, of_pipe.held_out)) * 16
    assert len(text) - 3 * 16 < tokens < len(text) + 100  # one per byte, and BOS per section


@pytest.mark.parametrize("before", [[], ["a.txt"]])
def test_json_lines_through_a_pipe_are_read_as_far_as_needed(
    tmp_path: Path, before: list[str]
) -> None:
    write(tmp_path / "a.txt", SENTENCE)
    rows = (b'{"text": "Row %d."}\n' % number for number in itertools.count())
    few = dataclasses.replace(CONFIG, calibration_tokens=64, evaluation_tokens=64)
    with piped(tmp_path / "pipe", rows) as pipe:
        sources = [str(tmp_path / name) for name in before] + [str(pipe)]
        assert len(load_blocks(sources, byte_tokenizer(), few, train_tokens=64).train) < 10


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


@DESCRIPTORS
@pytest.mark.parametrize("content", [b"text\n" * 4000, b'{"text": "%s"}' % (b"a" * 20_000)])
def test_a_file_through_a_descriptor_ends_and_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(decoding, "PART", 100)
    monkeypatch.setattr(decoding, "MOST_PIPED", 10_000)
    with write(tmp_path / "file", content).open() as file:
        assert len("".join(texts(f"/dev/fd/{file.fileno()}"))) == 20_000


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
