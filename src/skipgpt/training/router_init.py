"""Initialisation before training: fitted stand-ins, and routers random or at a constant margin."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from skipgpt.config import TrainConfig
from skipgpt.cost import Savings, savings
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.sparsity import clamp_to_curve, set_sparsity
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import routers, stand_ins
from skipgpt.routing.router import set_constant
from skipgpt.system.progress import advancing


def start_routers(model: Any, config: TrainConfig, text: Tensor) -> None:
    """Initialise new routers and stand-ins in place, as the config says, on text [N, T]."""
    stage = config.router_stage
    if stand_ins(model):
        with advancing("fitting stand-ins", announced=True) as advance:
            fit_stand_ins(model, subsample_rows(text, stage.fit_tokens), on_step=advance)
    if stage.start == "keep":
        for router in routers(model).values():
            set_constant(router, stage.start_margin)


def savings_of(model: nn.Module, config: TrainConfig) -> Savings:
    """Return what each site of a model saves, in the unit of a run's budget and over its rows.

    Time needs a machine that was profiled; else it raises ConfigError.
    """
    context = (config.data.block_size + 1) / 2
    return savings(model, config.budget, context, config.budget_time)


def set_to_target(model: nn.Module, config: TrainConfig) -> None:
    """Set a calibrated model to the target of a run, as far as its curve in that unit reaches.

    A model without a curve in the run's unit stays at its own target, until stage `lora` moves it.
    """
    curves = routing_state(model).curves
    if curves is not None and config.budget in curves.by_budget:
        near = clamp_to_curve(model, config.target_sparsity, config.budget)
        set_sparsity(model, near, budget=config.budget)
