"""A dry run knows what each layout of the table needs, in either dtype."""

from __future__ import annotations

import torch

import zoo
from cases import every_layout
from skipgpt.config import recipe
from skipgpt.config.settings import override
from skipgpt.training.dry_run import DryRun, dry_run

CONFIG = override(recipe("default"), {"batch_size": 2, "data.block_size": 16, "budget": "modules"})


def told(family: str, dtype: torch.dtype) -> DryRun:
    config = zoo.config(family)
    return dry_run(config, CONFIG, layout="single", processes=1, dtype=dtype, device="cpu")


@every_layout
def test_float32_keeps_more_than_bfloat16_and_at_most_about_twice_as_much(family: str) -> None:
    """Less than twice: indices stay as wide; norms, softmax and loss compute in float32 anyway."""
    wide, narrow = (told(family, dtype).stages for dtype in (torch.float32, torch.bfloat16))
    assert [each.stage for each in wide] == list(CONFIG.stages)
    for long, short in zip(wide, narrow, strict=True):
        assert short.memory.activations < long.memory.activations
        # Layers that differ, as the first ones of DeepSeek, are counted as if all were the third.
        assert long.memory.activations <= 2.1 * short.memory.activations
        assert long.held.parameters == short.held.parameters
