"""Static removal by the second-order costs of stage `fit`, averaged over tokens per module.

Routers blind to the token would choose the same, so it shows what deciding per token gains.
"""

from __future__ import annotations

from torch import Tensor, nn

from skipgpt.cost import savings
from skipgpt.fitting.costs import measure_costs
from skipgpt.removal.units import Unit, units_of
from skipgpt.system.progress import OnStep


def fisher(
    model: nn.Module,
    blocks: Tensor,
    *,
    batch_size: int = 4,
    on_step: OnStep | None = None,
    per_flop: bool = False,
) -> dict[Unit, float]:
    """Score each module by what its removal costs to second order.

    Stand-ins, if any, run where modules are removed. `per_flop` gives the cost per FLOP saved.
    Other arguments and errors: `skipgpt.removal.search.Method`.

    Raises:
        TrainingError: a gradient is NaN or infinite.
    """
    measured = measure_costs(model, blocks, batch_size=batch_size, on_step=on_step)
    context = (blocks.shape[1] + 1) / 2
    saved = savings(model, "flops", context, removed=True).by_site
    return {
        (site,): measured[site].value.mean().item() / (saved[site] if per_flop else 1.0)
        for (site,) in units_of(model, "modules")
    }
