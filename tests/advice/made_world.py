"""Files that commands are tried on, good ones and bad ones, made once per process."""

from __future__ import annotations

import atexit
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import skipgpt
from local_data import write_items
from runs import COMPARED, TINY, make_checkpoint, shared_checkpoint
from short_demo import write_small_nano
from tiny import byte_tokenizer, tiny_base

SHORT = TINY | {"router_stage.steps": 1, "lora_stage.steps": 1}
SETTINGS = {
    "TINY": [f"--set={key}={value}" for key, value in SHORT.items() if key != "stages"],
    "FEW": [
        f"--set={key}={value}"
        for key, value in (COMPARED | {"router_stage.steps": 1, "lora_stage.steps": 1}).items()
    ],
}
"""Words that stand for settings of a training, and of a comparison, of a moment."""


@functools.cache
def world() -> Path:
    """A folder of them."""
    folder = Path(tempfile.mkdtemp(prefix="skipgpt-advice-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkpoint = shared_checkpoint()
    base = checkpoint.parent / "base"
    (folder / "checkpoint").symlink_to(checkpoint)
    (folder / "base").symlink_to(base)
    _texts(folder)
    _models(folder, base, checkpoint)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _texts(folder: Path) -> None:
    texts = [f"Story {n}: the {n * n} cats sat in {n + 3} cafés and slept." for n in range(40)]
    good = [json.dumps({"text": text}, separators=(",", ":"), ensure_ascii=False) for text in texts]
    (folder / "several").mkdir()
    for n in range(9):
        (folder / "several" / f"{n}.txt").write_text("\n".join(texts[4 * n : 4 * n + 4]))
    contents: dict[str, bytes | str | list[Any]] = {
        "good.jsonl": "\n".join([*good, ""]),
        "empty.txt": b"",
        "binary.txt": b"\0 and more",
        "good.txt.gz": gzip.compress("<|endoftext|>".join(texts).encode()),
        "latin1.txt": "<|endoftext|>".join(texts).encode("latin1"),
        "utf16.txt": "<|endoftext|>".join(texts).encode("utf-16"),
        "one.txt": texts[0],
        "letter.txt": "a",
        "marked.txt": "<|endoftext|>".join(texts),
        "long.txt": "\n".join(f"{n}. {text}" for n in range(26) for text in texts),
        "log.txt": '{"version": 3}\n' + "<|endoftext|>".join(texts),
        "array.json": json.dumps([json.loads(line) for line in good]),
        "broken.jsonl": "\n".join([*good[:3], '{"text": ', *good[3:]]),
        "story.jsonl": [{"id": str(n), "a story": text} for n, text in enumerate(texts)],
        "numbers.jsonl": [{"id": n, "n": n} for n in range(30)],
        "lists.jsonl": [{"id": str(n), "text": [t], "a story": t} for n, t in enumerate(texts)],
        "number-texts.jsonl": [{"id": n, "text": n} for n in range(30)],
        "halves.jsonl": "\n".join([*good, '{"text": "half a pair \\ud800"}']),
        "few.jsonl": [{"text": "One cat sat."}, {"text": "Two dogs ran."}],
        "damaged.parquet": b"PAR1 and not more",
        "tasks/wide.jsonl": [
            {"query": "q", "choices": ["y" * 200, "z"], "gold": 0},
            {"query": "q", "choices": ["y", "z"], "gold": 0},
        ],
        "no-items/empty.jsonl": b"",
        "one-cache/answers-0.db": b"no database",
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    write_items(folder / "tasks")


def _models(folder: Path, base: Path, checkpoint: Path) -> None:
    make_checkpoint(base, folder / "uncalibrated", calibrated=False)
    tiny_base(initializer_range=0.2, seed=1).save_pretrained(folder / "other")
    byte_tokenizer().save_pretrained(folder / "other")
    for name in ("damaged", "moved", "of-other", "future"):
        shutil.copytree(checkpoint, folder / name)
    weights = folder / "damaged" / "routers.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    edit(folder / "moved" / "skipgpt_config.json", base=str(folder / "nowhere"))
    edit(folder / "of-other" / "skipgpt_config.json", base=str(folder / "other"))
    skipgpt.export_merged(checkpoint, folder / "merged")
    write_small_nano(folder / "small-nano")
    size = json.loads((base / "config.json").read_text())
    heads = {
        f"model.layers.{layer}.router_{module}.weight_predictor.{name}": torch.randn(shape)
        for layer in range(size["num_hidden_layers"])
        for module in ("attention", "mlp")
        for name, shape in (("weight", (2, size["hidden_size"])), ("bias", (2,)))
    }
    save_file(heads, folder / "routers.safetensors")
    fewer = {key: each for key, each in heads.items() if ".layers.2." not in key}
    save_file(fewer, folder / "two-layers.safetensors")
    whole = heads | load_file(base / "model.safetensors")
    save_file(whole, folder / "whole.safetensors")
    lora = {
        f"model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.randn(shape)
        for layer in range(size["num_hidden_layers"])
        for side, shape in (
            ("A", (2, size["hidden_size"])),
            ("B", (size["num_attention_heads"] * size["head_dim"], 2)),
        )
    }
    save_file(lora, folder / "lora.safetensors")
    shutil.copytree(base, folder / "no-tokenizer")
    for path in (folder / "no-tokenizer").glob("*token*"):
        path.unlink()
