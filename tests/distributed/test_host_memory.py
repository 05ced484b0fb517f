"""What lies in a machine's own memory before weights go to devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skipgpt.model.base import load_base
from tiny import byte_tokenizer, tiny_base

MAPS = Path("/proc/self/maps")


def _share_in_the_file(base: Path, dtype: str) -> float:
    """Which share of the weights is read from the mapped file itself."""
    model, _ = load_base(str(base), dtype=dtype)
    lines = [line.split() for line in MAPS.read_text().splitlines() if str(base) in line]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    sizes = {p.data_ptr(): p.numel() for p in model.parameters()}
    mapped = [n for at, n in sizes.items() if any(low <= at < high for low, high in spans)]
    return sum(mapped) / sum(sizes.values())


@pytest.mark.skipif(not MAPS.exists(), reason="Linux tells what is mapped")
def test_processes_share_a_base_that_is_stored_as_it_trains(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_base().to(torch.bfloat16).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    assert _share_in_the_file(base, "bfloat16") == 1
    assert _share_in_the_file(base, "float32") == 0
