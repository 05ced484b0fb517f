"""A dry run knows what each layout of the table needs, in either dtype."""

from __future__ import annotations

import torch

import zoo
from cases import every_layout
from skipgpt.config import TrainConfig, recipe
from skipgpt.config.settings import override
from skipgpt.training.dry_run import DryRun, dry_run
from tiny import LONG

# With LoRA on all layers, bfloat16 keeps a float32 copy of every input beside it.
SMALL = {"batch_size": 2, "data.block_size": 16, "lora_stage.targets": "query-value-gate"}
CONFIG = override(recipe("default"), SMALL | {"budget": "modules"})


def told(family: str, config: TrainConfig, dtype: torch.dtype) -> DryRun:
    base = zoo.config(family)
    return dry_run(base, config, layout="single", processes=1, dtype=dtype, device="cpu")


@every_layout
def test_float32_keeps_more_than_bfloat16_and_at_most_about_twice_as_much(family: str) -> None:
    """Less than twice: indices stay as wide; norms, softmax and loss compute in float32 anyway."""
    # Stage `lora` runs what the others run, and sparsely; all three are told for a Llama.
    config = CONFIG if LONG or family == "llama" else override(CONFIG, {"stages": "lora"})
    wide, narrow = (told(family, config, dtype).stages for dtype in (torch.float32, torch.bfloat16))
    assert [each.stage for each in wide] == list(config.stages)
    for long, short in zip(wide, narrow, strict=True):
        assert short.memory.activations < long.memory.activations
        # Layers that differ, as the first ones of DeepSeek, are counted as if all were the third.
        assert long.memory.activations <= 2.1 * short.memory.activations
        assert long.held.parameters == short.held.parameters
