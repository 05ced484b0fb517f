"""LLM-Drop: the attention modules and MLPs that turn the residual stream least, in one ranking.

Source: arXiv 2406.15786, github.com/CASE-Lab-UMD/LLM-Drop: "layer drop" there, with the norm
dropped along, one shot. A module's similarity is the mean cosine of the stream that enters it and
the same with its output added; `joint` ranks both kinds in one list. The authors' code knows
pre-norm families only; where a norm or a scale follows the module, our output is past it, and in
parallel families the stream that enters an MLP is what enters the layer. The authors calibrate on
256 rows of 2,048 tokens of C4, we on the blocks that we are given.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from skipgpt.baselines.similarity import similarities
from skipgpt.errors import ConfigError
from skipgpt.removal.search import OnStep, one_shot
from skipgpt.removal.units import Unit, units_of


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

    Args:
        model: with routers; what they say does not matter.
        blocks: [N, T] token ids that the similarity is measured on.
        removals: how many modules to remove.
        batch_size: blocks a forward.
        on_step: called with batches done and batches in all.
        modules: which ones may go: attention only, MLPs only, or both.

    Returns:
        The removed modules as units of one site, the most redundant first.

    Raises:
        ConfigError: more removals than such modules, or no such kind of module.

    Example:
        constant_routes(model, llm_drop(model, blocks, 4, modules="attn"))
    """
    if modules not in ("joint", "attn", "mlp"):
        raise ConfigError(
            "choosing which modules may go", got=repr(modules), expected="joint, attn or mlp"
        )
    kinds = ("attn", "mlp") if modules == "joint" else (modules,)
    cosines = similarities(model, blocks, batch_size=batch_size, on_step=on_step)
    candidates = [unit for unit in units_of(model, "modules") if unit[0].module in kinds]
    return one_shot({unit: 1 - cosines[unit] for unit in candidates}, removals)
