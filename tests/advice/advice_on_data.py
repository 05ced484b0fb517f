"""Commands that read text: what is wrong with it, and what their errors advise."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from following import Told, told

CUT = "--block-size 16 --max-tokens 64"
TRAIN = "train base --data DATA --out out TINY --recipe paper --stages router"
READING = {
    "train": TRAIN,
    "compare": "compare base --data DATA --out out FEW --methods dense",
    "eval": "eval checkpoint --text DATA --block-size 16 --no-closeness",
    "eval bits": "eval checkpoint --text DATA --form bits --no-closeness",
    "show": "show checkpoint --text DATA --block-size 16",
    "report": "report checkpoint --data DATA --block-size 16 --max-tokens 64 -o r.json",
    "bench": "bench checkpoint --data DATA --prompt-tokens 8 --phases prefill --repeats 1 "
    "--sparsity 0.25 --executions sparse",
    "export": "export checkpoint --static --data DATA --keep-rate 0.9 --block-size 16 --out out",
    "convert": "convert routers.safetensors --base base --data DATA --block-size 16 --out out",
}
"""Every command that reads text."""
OF_ROWS = {name: line for name, line in READING.items() if name not in ("eval bits",)}
HELD_OUT = ("train", "compare", "export", "convert")
"""Commands that hold documents out, or cut whole rows."""


def reading(
    module: str,
    advice: str,
    bad: str,
    *good: str,
    commands: Any = tuple(READING),
    before: Any = None,
    meanwhile: Any = None,
) -> Iterator[Told]:
    """One row per command: it fails on `bad` and runs on each of `good`, each after shell lines."""
    for name in commands:
        # As the error adds: what was converted is there where the calibration fails.
        again = " --overwrite" if name == "convert" else ""
        lines = []
        for each in good:
            *shell, data = each.split(" && ")
            line = f"skipgpt {cut_as(READING[name], data)}{again}"
            lines.append(" && ".join([*shell, line]))
        *shell, data = bad.split(" && ")
        fails = " && ".join([*shell, cut_as(READING[name], data)])
        yield told(module, advice, fails, *lines, before=before, meanwhile=meanwhile)


def cut_as(line: str, data: str) -> str:
    """A command line on data; a size of rows beside the data stands in place of its own."""
    if "--block-size" in data:
        line = line.replace("--block-size 16", "")
    return line.replace("DATA", data)


@contextmanager
def unreadable() -> Iterator[None]:
    """A text file without permissions, also for root."""
    refused = PermissionError(errno.EACCES, "Permission denied")
    read, opened = Path.read_bytes, Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name in ("good.jsonl", "marked.txt"):
            raise refused
        return opened(self, *arguments, **options)

    def refuse_bytes(self: Path) -> bytes:
        if self.name in ("good.jsonl", "marked.txt"):
            raise refused
        return read(self)

    with (
        mock.patch.object(Path, "open", refuse),
        mock.patch.object(Path, "read_bytes", refuse_bytes),
    ):
        yield


def holding_little() -> Any:
    """Let no more than 10,000 bytes be read from a pipe."""
    return mock.patch("skipgpt.data.decoding.MOST_PIPED", 10_000)


class Rows(list[Any]):
    """A hub dataset."""

    def shuffle(self, **_: Any) -> Rows:
        return self


def of_the_hub() -> Any:
    """Let the hub have one dataset."""
    rows = Rows({"text": f"Story {n}: the {n * n} cats sat on mats and slept."} for n in range(60))
    return mock.patch("datasets.load_dataset", return_value=rows)


WHOLE = ("train", "compare", "export", "convert")
HUB = (
    "check the id (org/name:config where it has several), the network and HF_HUB_OFFLINE; or fetch "
    "its files and give those"
)
ON_DATA = [
    told(
        "cli/convert.py", "… holds the uncalibrated checkpoint: add --overwrite",
        READING["convert"].replace("DATA", "empty.txt"),
        "skipgpt " + READING["convert"].replace("DATA", "good.jsonl") + " --overwrite",
    ),
    *reading("data/sources.py", "give another source", "empty.txt", "good.jsonl"),
    *reading(
        "data/sources.py", "check the spelling; paths are relative to …", "goood.jsonl",
        "good.jsonl", "<1>/good.jsonl",
    ),
    *reading(
        "data/decoding.py", "check its permissions", "good.jsonl", "good.jsonl",
        before=unreadable,
    ),
    *reading(
        "data/decoding.py", "write as much of it as is needed to a file, and give that",
        "mkfifo pipe && (while cat marked.txt; do :; done > pipe &) && pipe",
        "cat marked.txt > part.txt && part.txt", before=holding_little,
    ),
    *reading(
        "data/decoding.py", "unpack it if it is an archive, or leave it out", "good.txt.gz",
        "gzip -dc good.txt.gz > unpacked.txt && unpacked.txt",
    ),
    *reading(
        "data/decoding.py", "convert it to UTF-8, e.g. iconv -f latin1 -t utf-8", "latin1.txt",
        "iconv -f latin1 -t utf-8 latin1.txt > fixed.txt && fixed.txt",
    ),
    *reading(
        "data/decoding.py", "convert it to UTF-8, e.g. iconv -f … -t utf-8", "utf16.txt",
        "iconv -f <1> -t utf-8 utf16.txt > fixed.txt && fixed.txt",
    ),
    *reading(
        "data/rows.py", "repair the line; a JSON array becomes lines with: jq -c '.[]'",
        "array.json", "jq -c '.[]' array.json > lines.jsonl && lines.jsonl",
    ),
    *reading(
        "data/rows.py", "name the field that holds the text: --text-field=… (text_field)",
        "story.jsonl", "story.jsonl --text-field=<1>",
    ),
    *reading(
        "data/rows.py", "name the field that holds the text: --text-field=… (text_field)",
        "lists.jsonl", "lists.jsonl --text-field=<1>",
    ),
    *reading(
        "data/rows.py",
        "give rows with a field of text, and name it: --text-field=NAME (text_field)",
        "numbers.jsonl", "story.jsonl --text-field='a story'",
    ),
    *reading(
        "data/rows.py",
        "give rows with a field of text, and name it: --text-field=NAME (text_field)",
        "number-texts.jsonl", "story.jsonl --text-field='a story'",
    ),
    *reading(
        "data/rows.py", "or, if it is text, write it to a file that ends in .txt",
        "mkfifo pipe && (cat log.txt > pipe &) && pipe", "cp -L log.txt copy.txt && copy.txt",
    ),
    *reading(
        "data/rows.py", "repair or drop the row", "halves.jsonl",
        "grep -v ud800 halves.jsonl > whole.jsonl && whole.jsonl",
    ),
    *reading(
        "data/rows.py", "fetch or write the file again", "damaged.parquet",
        "cp -r good.jsonl again.jsonl && again.jsonl",
    ),
    *reading(
        "data/rows.py", HUB, "org/name", "good.jsonl", "org/name",
        meanwhile=of_the_hub, commands=WHOLE,
    ),
    *reading(
        "data/rows.py", HUB, "org/name --max-tokens 64", "good.jsonl", "org/name --max-tokens 64",
        meanwhile=of_the_hub, commands=("eval", "show"),
    ),
    *reading(
        "data/rows.py", HUB, "org/name", "good.jsonl", "org/name",
        meanwhile=of_the_hub, commands=("report", "bench"),
    ),
    *(
        told(
            "data/sources.py", "leave out --text-field (text_field=)",
            READING[name].replace("DATA", "marked.txt --text-field story"),
            "skipgpt " + READING[name].replace("DATA", "marked.txt")
            + " --overwrite" * (name == "convert"),
        )
        for name in READING
    ),
    *(
        told(
            module, "give --max-tokens (max_tokens)",
            READING[name].replace("--max-tokens 64", "--max-tokens 0").replace("DATA", "org/name"),
            f"skipgpt {READING[name].replace('DATA', 'org/name')} --max-tokens 64",
            before=of_the_hub, meanwhile=of_the_hub,
        )
        for module in ("data/sources.py", "evaluation/source_rows.py")
        for name in ("eval", "show", "report")
    ),
    *(
        told(
            "evaluation/protocols.py",
            "give --max-documents (max_documents): this form reads every document before it cuts "
            "any",
            f"eval checkpoint --text org/name --form {form} --no-closeness",
            f"skipgpt eval checkpoint --text org/name --form {form} --no-closeness "
            "--max-documents 20",
            before=of_the_hub, meanwhile=of_the_hub,
        )
        for form in ("bits", "fixed", "sliding")
    ),
    *reading(
        "data/split.py",
        "give several files, a folder or JSONL rows; a lone text file needs … between its "
        "documents "
        "or about …,000 characters", "one.txt",
        "several/1.txt --data several/2.txt --data several/3.txt --data several/5.txt",
        "several",
        "good.jsonl", "marked.txt",
        "LC_ALL=C.UTF-8 awk -v most=<2>000 '{n += length($0) + 1; print} n >= most {exit}' "
        "long.txt > enough.txt && enough.txt", commands=WHOLE,
    ),
    *reading(
        "data/blocks.py", "give more text, or fewer tokens per row (--block-size)", "few.jsonl",
        "good.jsonl", "few.jsonl --block-size 8", commands=WHOLE,
    ),
    told("cli/report.py", "give --data SRC",
         "report checkpoint --block-size 16 --max-tokens 64 -o r.json",
         "skipgpt " + READING["report"].replace("DATA", "good.jsonl")),
]  # fmt: skip
