"""Small tasks for benchmarks, and what they come to without the harness."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax

from skipgpt.model.state import record_routing

PUBLISHED = ("arc_easy", "piqa", "boolq", "hellaswag-1k")
ITEMS = [
    {"query": f"Question: which is {n}?", "choices": [str(n + k) for k in range(3)], "gold": n % 3}
    for n in range(6)
]


def write_items(folder: Path, name: str = "numbers", items: Any = None) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in items or ITEMS), encoding="utf-8")
    return path


def published_items(folder: Path, name: str, count: int) -> list[tuple[str, list[str], int]]:
    """Prompt, choices and the right one, as the harness words these tasks."""
    lines = (folder / "eval" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    if "query" in rows[0]:
        return [(r["query"].rstrip() + "\nAnswer:", r["choices"], r["gold"]) for r in rows]

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    return [
        (
            clean(f"{r['activity_label']}: {r['ctx_a']} {r['ctx_b'].capitalize()}"),
            [clean(ending) for ending in r["endings"]],
            int(r["label"]),
        )
        for r in rows
    ]


@dataclass
class Plain:
    """Scores item by item: no batch, no padding, nothing shared."""

    nats: dict[tuple[str, str], float] = field(default_factory=dict)
    acc: list[bool] = field(default_factory=list)
    acc_norm: list[bool] = field(default_factory=list)
    kept: int = 0
    decided: int = 0

    @property
    def module_sparsity(self) -> float:
        return 1 - self.kept / self.decided


@torch.no_grad()
def plainly(model: nn.Module, tokenizer: Any, items: list[tuple[str, list[str], int]]) -> Plain:
    found = Plain()
    context = model.config.max_position_embeddings
    for prompt, choices, gold in items:
        sums = []
        for choice in choices:
            ids = tokenizer.encode(f"{prompt} {choice}")
            scored = len(ids) - len(tokenizer.encode(prompt))
            ids = ids[-context - 1 :]
            with record_routing(model) as trace:
                logits = model(torch.tensor([ids[:-1]])).logits[0]
            scores = log_softmax(logits.double(), -1)
            places = range(len(ids) - scored, len(ids))
            sums.append(math.fsum(scores[n - 1, ids[n]].item() for n in places))
            found.nats[prompt, f" {choice}"] = sums[-1]
            counts, tokens = trace.counts().kept(), trace.counts().tokens
            found.kept += sum(counts.values())
            found.decided += tokens * len(counts)
        by_length = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
        found.acc.append(sums.index(max(sums)) == gold)
        found.acc_norm.append(by_length.index(max(by_length)) == gold)
    return found
