"""Sources of text become documents."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipgpt.config import DataConfig
from skipgpt.data import (
    read_documents,
)
from skipgpt.data.documents import SECTION, cut_sections
from skipgpt.errors import ConfigError
from texts import SENTENCE, read, texts, write, write_parquet, write_rows


def test_each_of_several_text_files_is_one_document(tmp_path: Path) -> None:
    first = write(tmp_path / "b.txt", SENTENCE * 1000)
    second = write(tmp_path / "a.md", "# Title\n")
    assert texts(first, second) == [SENTENCE * 1000, "# Title\n"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "a.txt", "Z.txt"):
        write(tmp_path / name, name)
    found = [document.name for document in read(tmp_path)]
    assert found == ["Z.txt", "a/b/c.txt", "a/z.txt", "a.txt", "b.txt"]
    assert found == texts(tmp_path)


def test_a_folder_leaves_out_hidden_and_empty_files_and_names_the_binary_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "b.txt", "b")
    write(tmp_path / ".git/config", "hidden")
    write(tmp_path / "__init__.py", "")
    write(tmp_path / "picture.png", b"\x89PNG\0\0")
    with caplog.at_level(logging.WARNING):
        assert texts(tmp_path) == ["a", "b"]
    assert "picture.png" in caplog.text
    assert "config" not in caplog.text


def test_a_lone_text_is_cut_into_sections_at_blank_lines(tmp_path: Path) -> None:
    paragraph = SENTENCE * 20 + "\n"
    path = write(tmp_path / "book.txt", paragraph * 50)
    documents = read(path)
    assert len(documents) > 3
    assert [document.name for document in documents][:2] == ["book.txt#1", "book.txt#2"]
    assert all(len(document.text) >= SECTION for document in documents)
    assert all(document.text.endswith("\n\n") for document in documents)
    assert "".join(document.text for document in documents) == paragraph * 50


def test_a_folder_with_one_text_is_cut_like_that_text(tmp_path: Path) -> None:
    path = write(tmp_path / "folder/book.txt", SENTENCE * 2000)
    assert read(path.parent) == read(path)


@pytest.mark.parametrize("count", [1, 2])
def test_markers_are_boundaries_wherever_they_stand(tmp_path: Path, count: int) -> None:
    content = "One.\n\nStill one.\n<|endoftext|>\nTwo.<|endoftext|>Three.\n<|endoftext|>\n"
    paths = [write(tmp_path / f"{n}.txt", content) for n in range(count)]
    assert texts(*paths) == ["One.\n\nStill one.", "Two.", "Three."] * count


@given(
    st.lists(
        st.tuples(st.sampled_from("ab \x0c\u2028é"), st.integers(0, 3 * SECTION)), max_size=12
    ),
    st.sampled_from(["\n", "\n\n", "\n \n"]),
)
@settings(max_examples=60, deadline=None)
def test_sections_are_long_enough_and_join_to_the_text(
    lines: list[tuple[str, int]], end: str
) -> None:
    text = "".join(letter * length + end for letter, length in lines)
    sections = cut_sections(text)
    assert "".join(sections) == text
    assert all(len(section) >= SECTION for section in sections) or len(sections) <= 1
    assert all(section.endswith("\n") for section in sections)


def test_a_gigantic_line_is_cut_inside() -> None:
    sections = cut_sections("x" * 100 * SECTION)
    assert len(sections) > 10
    assert "".join(sections) == "x" * 100 * SECTION


def test_json_lines_and_parquet_give_one_document_a_row(tmp_path: Path) -> None:
    rows = ["erste Zeile\nmit Umbruch", "zweite: ü", "third"]
    lines = write_rows(tmp_path / "a.jsonl", *({"text": row, "n": 1} for row in rows))
    table = write_parquet(tmp_path / "a.parquet", n=[1, 2, 3], text=rows)
    assert texts(lines) == texts(table) == rows
    assert [document.name for document in read(lines)][1] == "a.jsonl, line 2"
    assert [document.group for document in read(lines)] == [d.group for d in read(table)]


def test_rows_without_text_are_passed_over(tmp_path: Path) -> None:
    content = '{"text": "a"}\r\n\r\n{"text": ""}\n{"text": null}\n{"text": "b"}'
    assert texts(write(tmp_path / "a.jsonl", content)) == ["a", "b"]
    assert texts(write_parquet(tmp_path / "a.parquet", text=["a", None, "  ", "b"])) == ["a", "b"]


def test_equal_texts_share_a_group(tmp_path: Path) -> None:
    lines = write_rows(tmp_path / "a.jsonl", {"text": "same"}, {"text": "other"}, {"text": "same"})
    copy = write(tmp_path / "copy.txt", "same")
    first, other, again, copied = (document.group for document in read(lines, copy))
    assert first == again == copied
    assert first != other


def test_the_field_of_the_text_can_be_named(tmp_path: Path) -> None:
    lines = write_rows(tmp_path / "a.json", {"text": 1, "story": "Once."})
    table = write_parquet(tmp_path / "a.parquet", story=["Once."])
    assert texts(lines, table, text_field="story") == ["Once.", "Once."]


def test_a_byte_order_mark_of_utf_8_and_windows_line_ends_disappear(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")
    lines = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "three"}\r\n')
    assert texts(text, lines) == ["one\ntwo\n", "three"]


def test_no_more_documents_are_read_than_asked_for(tmp_path: Path) -> None:
    good = write(tmp_path / "a.txt", "a")
    lines = write(tmp_path / "b.jsonl", '{"text": "b"}\n{"text": "c"}\nnot JSON\n')
    assert texts(good, lines, max_documents=3) == ["a", "b", "c"]
    assert len(read("stdlib", max_documents=5)) == 5


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no /dev/fd here")
def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    try:
        assert texts(f"/dev/fd/{reader}") == ["through a pipe"]
    finally:
        os.close(reader)


def test_a_folder_of_real_text_leaves_its_archive_out(
    data_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        names = {document.name.split(",")[0] for document in read(data_folder / "text")}
    assert {"tinystories.txt", "wikitext2-valid.txt"} <= names
    assert not any(name.startswith("novels") for name in names)
    assert "novels.txt.xz" in caplog.text


def test_a_field_of_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.jsonl").write_text('{"content": "rows"}')
    config = DataConfig(text_field="content")
    with pytest.raises(ConfigError, match=r"field 'content' of plain text.*leave out --text-field"):
        read_documents([str(tmp_path / "a.txt"), "stdlib"], config)
    both = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    assert [document.text for document in read_documents(both, config)] == ["plain text", "rows"]
