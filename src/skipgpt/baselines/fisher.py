"""Static removal by the second-order costs of stage `fit`, averaged over tokens per module.

Routers blind to the token would choose the same, so it shows what deciding per token gains.
"""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.cost import savings
from skipgpt.fitting.costs import measure_costs
from skipgpt.removal.search import one_shot
from skipgpt.removal.units import Unit, units_of
from skipgpt.system.progress import OnStep


def fisher(
    model: nn.Module,
    blocks: Tensor,
    removals: int,
    *,
    batch_size: int = 4,
    on_step: OnStep | None = None,
    per_flop: bool = False,
) -> list[Unit]:
    """Remove the modules whose removal costs least to second order, in one ranking.

    Stand-ins, if any, run where modules are removed. `per_flop` ranks by the cost per FLOP saved.
    Arguments, result, errors and example: `skipgpt.removal.search.Method`.

    Raises:
        TrainingError: a gradient is NaN or infinite.
    """
    measured = measure_costs(model, blocks, batch_size=batch_size, on_step=on_step)
    context = (blocks.shape[1] + 1) / 2
    saved = savings(model, "flops", context, removed=True).by_site
    importance: dict[Unit, float] = {
        (site,): measured[site].value.mean().item() / (saved[site] if per_flop else 1.0)
        for (site,) in units_of(model, "modules")
    }
    return one_shot(importance, removals)
