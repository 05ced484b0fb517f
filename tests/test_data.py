"""Sources become documents, documents become rows, and no document is on both sides."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import byte_tokenizer
from skipgpt.config import DataConfig
from skipgpt.data import (
    Document,
    encode_documents,
    load_blocks,
    pack_blocks,
    read_documents,
    split_documents,
    stdlib_documents,
)
from skipgpt.data.documents import SECTION, cut_sections
from skipgpt.errors import ConfigError, DataError, MissingExtraError

TOKENIZER = byte_tokenizer()
CONFIG = DataConfig(block_size=16, held_out=0.3)
SENTENCE = "The quick brown fox jumps over the lazy dog.\n"


def bare_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with only the special tokens given."""
    return PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, **special)


def read(*sources: Path | str, **settings: object) -> list[Document]:
    config = dataclasses.replace(CONFIG, **settings)
    return list(read_documents([str(source) for source in sources], config))


def texts(*sources: Path | str, **settings: object) -> list[str]:
    return [document.text for document in read(*sources, **settings)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_rows(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, **columns: list[object]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return path


def refusal(*sources: Path | str, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(*sources, **settings)
    error = caught.value
    assert error.doing
    assert error.got
    assert error.expected
    assert error.todo
    return error


def documents_of(groups: list[str]) -> list[Document]:
    return [Document(f"{n}", f"text {n}", group) for n, group in enumerate(groups)]


# Reading.


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


# The standard library.


def test_the_standard_library_is_there_in_a_fixed_order_without_installed_packages() -> None:
    documents = stdlib_documents()
    names = [document.name for document in documents]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert [name.split("/") for name in names] == sorted(name.split("/") for name in names)
    assert not any("site-packages" in name or "/test" in f"/{name}" for name in names)


def test_a_module_shares_its_group_with_its_test_its_private_half_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json/__init__.py", "_json.py", "json.py", "test/test_json.py", "test/support.py"):
        write(tmp_path / name, "x = 1\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    groups = {document.name: document.group for document in stdlib_documents(with_tests=True)}
    assert groups.pop("test/support.py") == "support"
    assert len(groups) == 4
    assert set(groups.values()) == {"json"}
    assert len(stdlib_documents()) == 3


def test_files_of_the_standard_library_that_are_not_utf_8_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "good.py", "x = 1\n")
    write(tmp_path / "bad.py", "# -*- coding: latin-1 -*- é".encode("latin-1"))
    write(tmp_path / "site-packages/other.py", "x = 2\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert stdlib_documents() == [Document("good.py", "x = 1\n", "good")]


# Hub datasets.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A stand-in for `datasets`; what it was asked, and how many rows were taken."""
    seen: dict[str, object] = {"taken": 0}

    def load_dataset(name: str, subset: str | None, **options: object) -> Iterator[object]:
        seen.update(name=name, subset=subset, **options)
        if name == "org/gone":
            raise ConnectionError("Couldn't reach 'org/gone' on the Hub\nsecond line")
        if name == "org/empty":
            return iter(())

        def rows() -> Iterator[object]:
            for number in range(1, 1_000_000):
                seen["taken"] = number
                yield {"body": f"row {number}"}

        return rows()

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return seen


def test_a_hub_dataset_is_streamed_and_left_when_there_is_enough(hub: dict[str, object]) -> None:
    found = texts("org/name:small", text_field="body", max_documents=3)
    assert found == ["row 1", "row 2", "row 3"]
    assert hub == {
        "name": "org/name",
        "subset": "small",
        "split": "train",
        "streaming": True,
        "taken": 3,
    }


def test_a_local_path_comes_before_a_hub_dataset(
    hub: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "org/name/a.txt", "local")
    monkeypatch.chdir(tmp_path)
    assert texts("org/name") == ["local"]
    assert hub == {"taken": 0}


def test_a_hub_dataset_out_of_reach_says_how_to_do_without(hub: dict[str, object]) -> None:
    error = refusal("org/gone")
    assert "org/gone" in error.doing
    assert error.got == "ConnectionError: Couldn't reach 'org/gone' on the Hub"
    assert "HF_HUB_OFFLINE" in error.todo
    assert isinstance(error.__cause__, ConnectionError)


def test_a_hub_dataset_without_the_field_or_without_rows_is_refused(
    hub: dict[str, object],
) -> None:
    error = refusal("org/name")
    assert "row 1 with the fields body" in error.got
    assert error.todo.endswith("--text-field=body (text_field)")
    assert "no row with text" in refusal("org/empty").got


def test_the_real_datasets_package_is_refused_as_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    hub_constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    error = refusal("skipgpt-tests/nowhere")
    assert "skipgpt-tests/nowhere" in error.got
    assert "network" in error.todo


@pytest.mark.parametrize(("source", "module"), [("org/name", "datasets"), ("", "pyarrow")])
def test_a_missing_extra_prints_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'skipgpt[data]'")) as caught:
        read(source or write(tmp_path / "a.parquet", b"PAR1"))
    assert module in str(caught.value)


# What cannot be read.


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


# The split.


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=2).filter(
        lambda groups: len(set(groups)) > 1
    ),
    st.floats(0.01, 0.99),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_a_split_loses_nothing_keeps_groups_together_and_ignores_order(
    groups: list[str], share: float, random: object
) -> None:
    documents = documents_of(groups)
    train, held_out = split_documents(documents, share)
    assert train
    assert held_out
    assert sorted(train + held_out, key=documents.index) == documents
    assert train == sorted(train, key=documents.index)
    assert held_out == sorted(held_out, key=documents.index)
    assert not {d.group for d in train} & {d.group for d in held_out}
    random.shuffle(documents)  # type: ignore[attr-defined]
    again, held_again = split_documents(documents, share)
    assert set(again) == set(train)
    assert set(held_again) == set(held_out)


@given(st.integers(2, 300), st.integers(2, 300), st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=30)
def test_more_documents_move_none_of_the_earlier_ones(few: int, more: int, share: float) -> None:
    documents = documents_of([f"group {n}" for n in range(few + more)])
    early, late = split_documents(documents[:few], share), split_documents(documents, share)
    moved = sum(len(set(before) - set(after)) for before, after in zip(early, late, strict=True))
    # The one group that was moved to fill an empty side may move back.
    assert moved <= 1


def test_the_split_is_the_same_on_every_machine() -> None:
    """The embedded model was trained on one side of this split: it must never change."""
    documents = documents_of(["json", "argparse", "queue", "struct", "tasks", "decoder"])
    _, held_out = split_documents(documents, 0.05)
    assert [document.group for document in held_out] == ["json", "queue", "struct", "tasks"]


def test_the_share_held_out_is_about_the_share_asked_for() -> None:
    documents = documents_of([f"group {n}" for n in range(4000)])
    _, held_out = split_documents(documents, 0.25)
    # Binomial: the standard deviation is 27 of 4000.
    assert abs(len(held_out) - 1000) < 5 * 27


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_two_groups_are_enough_for_both_sides(share: float) -> None:
    train, held_out = split_documents(documents_of(["a", "b", "a"]), share)
    assert {len(train), len(held_out)} == {1, 2}


@pytest.mark.parametrize(
    ("groups", "got"),
    [
        ([], "no document"),
        (["a"], "only one document, '0'"),
        (["a", "a", "a"], "3 documents of one group"),
    ],
)
def test_fewer_than_two_groups_cannot_be_split(groups: list[str], got: str) -> None:
    with pytest.raises(DataError) as caught:
        split_documents(documents_of(groups), 0.5)
    assert caught.value.got == got
    assert "two or more" in caught.value.expected
    assert "give several files" in caught.value.todo


# Tokens.


def test_bos_stands_before_every_document() -> None:
    tokenizer = bare_tokenizer(bos_token="<|endoftext|>")
    a, b = tokenizer("a").input_ids, tokenizer("bb").input_ids
    ids = encode_documents([Document("", "a", ""), Document("", "bb", "")], tokenizer)
    assert ids.tolist() == [0, *a, 0, *b]
    assert ids.dtype == torch.int64


def test_eos_stands_after_every_document_where_there_is_no_bos() -> None:
    tokenizer = bare_tokenizer(eos_token="<|endoftext|>")
    a, b = tokenizer("a").input_ids, tokenizer("bb").input_ids
    ids = encode_documents([Document("", "a", ""), Document("", "bb", "")], tokenizer)
    assert ids.tolist() == [*a, 0, *b, 0]


def test_documents_touch_where_the_tokenizer_has_neither() -> None:
    tokenizer = bare_tokenizer()
    ids = encode_documents([Document("", "a", ""), Document("", "bb", "")], tokenizer)
    assert ids.tolist() == tokenizer("abb").input_ids


def test_a_tokenizer_that_adds_bos_itself_does_not_double_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("a").input_ids[0] == 0
    ids = encode_documents([Document("", "a", "")] * 2, tokenizer).tolist()
    assert ids == encode_documents([Document("", "a", "")] * 2, TOKENIZER).tolist()
    assert ids.count(0) == 2


def test_documents_longer_than_the_window_are_encoded_in_silence(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 8
    with caplog.at_level(logging.WARNING):
        ids = encode_documents([Document("", "x" * 100, "")], tokenizer)
    assert len(ids) == 101
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_no_documents_give_no_tokens() -> None:
    ids = encode_documents([], TOKENIZER)
    assert ids.shape == (0,)
    assert ids.dtype == torch.int64


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=600),
    st.integers(2, 40),
)
@settings(deadline=None, max_examples=50)
def test_packing_keeps_the_order_and_loses_less_than_a_row(texts: list[str], size: int) -> None:
    documents = [Document("", text, "") for text in texts]
    stream = [token for text in texts for token in (0, *TOKENIZER(text).input_ids)]
    if len(stream) < size:
        with pytest.raises(DataError, match="too short"):
            pack_blocks(documents, TOKENIZER, size)
        return
    rows = pack_blocks(documents, TOKENIZER, size)
    assert rows.shape == (len(stream) // size, size)
    assert rows.dtype == torch.int64
    assert rows.flatten().tolist() == stream[: rows.numel()]
    assert len(stream) - rows.numel() < size


def test_text_shorter_than_a_row_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError) as caught:
        pack_blocks([Document("", "abc", "")], TOKENIZER, 16, doing="packing this")
    assert caught.value.doing == "packing this"
    assert "4 tokens" in caught.value.got
    assert "too short" in caught.value.got
    assert caught.value.expected.startswith("16")
    assert "--block-size" in caught.value.todo


# The whole.


def test_rows_of_the_two_sides_come_from_different_documents(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number:02}.txt", chr(ord("a") + number) * 40)
    blocks = load_blocks([str(tmp_path)], TOKENIZER, CONFIG)
    assert sum(blocks.documents) == 20
    assert blocks.train.shape == (blocks.documents[0] * 41 // 16, 16)
    letters = [
        set(part.unique().tolist()) - {0}
        for part in (blocks.train, blocks.calibration, blocks.held_out)
    ]
    assert all(letters)
    assert len(set.union(*letters)) == sum(map(len, letters))


def test_calibration_falls_back_on_training_text_where_one_document_is_held_out(
    tmp_path: Path,
) -> None:
    for number in range(3):
        write(tmp_path / f"{number:02}.txt", chr(ord("a") + number) * 40)
    blocks = load_blocks([str(tmp_path)], TOKENIZER, dataclasses.replace(CONFIG, held_out=0.01))
    assert blocks.documents == (2, 1)
    assert torch.equal(blocks.calibration, blocks.train)


def test_the_fingerprint_changes_with_the_text_and_the_settings_and_nothing_else(
    tmp_path: Path,
) -> None:
    def fingerprint(text: str, **changes: object) -> str:
        rows = [{"text": f"{text} {number} " + "x" * 40} for number in range(20)]
        path = write_rows(tmp_path / f"{text}-{len(changes)}.jsonl", *rows)
        config = dataclasses.replace(CONFIG, **changes)
        return load_blocks([str(path)], TOKENIZER, config).fingerprint

    first = fingerprint("one")
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert first == fingerprint("one")
    others = [
        fingerprint("two"),
        fingerprint("one", block_size=17),
        fingerprint("one", held_out=0.31),
    ]
    assert len({first, *others}) == 4


def test_a_lone_text_too_short_for_two_sections_is_refused_with_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "short.txt", SENTENCE * 100)
    with pytest.raises(DataError) as caught:
        load_blocks([str(path)], TOKENIZER, CONFIG)
    assert "short.txt" in caught.value.got
    assert "several files" in caught.value.todo
    assert "<|endoftext|>" in caught.value.todo


@pytest.mark.parametrize(("short", "size"), [("training", 1000), ("held-out", 100)])
def test_the_side_that_is_too_short_is_named(tmp_path: Path, short: str, size: int) -> None:
    rows = write_rows(tmp_path / "a.jsonl", *({"text": f"{n:09}"} for n in range(20)))
    with pytest.raises(DataError, match=f"packing the {short} text: got .* too short"):
        load_blocks([str(rows)], TOKENIZER, dataclasses.replace(CONFIG, block_size=size))


def test_real_text_becomes_rows_of_a_real_tokenizer(data_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data_folder / "stories260K")
    path = data_folder / "text" / "wikitext2-valid.txt"
    config = DataConfig(block_size=128, held_out=0.1, max_documents=20)
    blocks = load_blocks([str(path)], tokenizer, config)
    assert sum(blocks.documents) == 20
    assert blocks.train[0, 0] == tokenizer.bos_token_id
    bos = (blocks.train == tokenizer.bos_token_id).sum() + (
        blocks.held_out == tokenizer.bos_token_id
    ).sum()
    assert bos == 20
    assert tokenizer.decode(blocks.train[0, 1:40]).strip()[:4] == path.read_text().strip()[:4]


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
