"""LLM-Drop: one ranking of modules by how little they change the residual stream.

Source: arXiv 2406.15786, github.com/CASE-Lab-UMD/LLM-Drop: its one-shot "layer drop", which drops
the norm as well. A module's similarity is the mean cosine of the stream before and after its output
is added; `joint` ranks both kinds in one list. The authors' code supports pre-norm families only;
here a module's output is taken after any norm or scale that follows it, and in parallel families
the input of an MLP is that of the layer. The authors calibrate on 256 rows of 2,048 tokens of C4,
we on the given blocks.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from skipgpt.baselines.similarity import similarities
from skipgpt.errors import ConfigError
from skipgpt.removal.search import one_shot
from skipgpt.removal.units import Unit, units_of
from skipgpt.system.progress import OnStep


def llm_drop(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 8,
    on_step: OnStep | None = None,
    modules: Literal["joint", "attn", "mlp"] = "joint",
) -> list[Unit]:
    """Remove the modules whose output is most like their input.

    `modules` says which kinds may be removed: attention only, MLPs only, or both. Other arguments,
    result, errors and example: `skipgpt.removal.search.Method`.
    """
    if modules not in ("joint", "attn", "mlp"):
        raise ConfigError(
            "choosing which modules may go", got=repr(modules), expected="joint, attn or mlp"
        )
    kinds = ("attn", "mlp") if modules == "joint" else (modules,)
    cosines = similarities(model, blocks, batch_size=batch_size, on_step=on_step)
    candidates = [unit for unit in units_of(model, "modules") if unit[0].module in kinds]
    return one_shot({unit: 1 - cosines[unit] for unit in candidates}, removals)
