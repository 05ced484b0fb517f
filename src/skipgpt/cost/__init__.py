"""What running a model costs, computed rather than timed.

counts.py    parameters of a layer, by which tokens have to run them
forward.py   work of one forward, and the ideal speed-up
training.py  FLOPs of a training step, by stage
shares.py    what skipping saves, as shares of the dense cost
seconds.py   that in seconds of a profiled machine
savings.py   that in any unit, of a model; sparsity in all its senses
memory.py    memory of training, by device
stored.py    what a training forward keeps for its backward pass
"""

from skipgpt.cost.counts import ModuleCosts, layer_costs
from skipgpt.cost.forward import Forward, Work, layer_flops, work
from skipgpt.cost.savings import (
    SENSES,
    flops_per_token,
    no_sparsities,
    overhead,
    saved_by_router,
    savings,
    sparsities,
    timed_of,
)
from skipgpt.cost.seconds import measured_machine, profile_for
from skipgpt.cost.shares import Savings
from skipgpt.cost.training import lora_flops, training_flops

__all__ = [
    "SENSES",
    "Forward",
    "ModuleCosts",
    "Savings",
    "Work",
    "flops_per_token",
    "layer_costs",
    "layer_flops",
    "lora_flops",
    "measured_machine",
    "no_sparsities",
    "overhead",
    "profile_for",
    "saved_by_router",
    "savings",
    "sparsities",
    "timed_of",
    "training_flops",
    "work",
]
