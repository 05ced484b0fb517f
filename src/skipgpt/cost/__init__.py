"""What running a model costs, computed rather than timed."""

from skipgpt.cost.counts import ModuleCosts, layer_costs
from skipgpt.cost.forward import Forward, Work, ideal_speedup, layer_flops, work
from skipgpt.cost.savings import (
    Savings,
    flops_per_token,
    overhead,
    saved_by_router,
    savings,
    sparsities,
)
from skipgpt.cost.training import lora_flops, training_flops

__all__ = [
    "Forward",
    "ModuleCosts",
    "Savings",
    "Work",
    "flops_per_token",
    "ideal_speedup",
    "layer_costs",
    "layer_flops",
    "lora_flops",
    "overhead",
    "saved_by_router",
    "savings",
    "sparsities",
    "training_flops",
    "work",
]
