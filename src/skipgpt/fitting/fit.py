"""Stage `fit`: stand-ins, then costs, then routers, each in closed form; no training step.

The margin of a router is the logarithm of the cost it predicts, less the logarithm of what skipping
saves in the unit of the budget. So one threshold for the whole model equalises the cost per saving
over all tokens, modules and layers: the least total cost at a budget, to second order.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from skipgpt.config import TrainConfig
from skipgpt.cost import Savings, saved_by_router
from skipgpt.errors import DataError
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.fitting.costs import measure_costs
from skipgpt.fitting.gated_passes import SiteValues
from skipgpt.fitting.heads import write_router
from skipgpt.fitting.regression import Design
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import hidden_size, routed_layers, routers, stand_ins
from skipgpt.routing.decision import Site, Threshold
from skipgpt.routing.router import add_to_margin, set_constant
from skipgpt.system.progress import OnStep

logger = logging.getLogger("skipgpt")

INPUT_BYTES = 2**32
"""Memory limit of stored router inputs; more layers take more passes."""
NEVER = 64.0
"""A margin beyond every threshold."""

Progress = Callable[[str], AbstractContextManager[OnStep]]
"""Opens a progress phase with a label."""


@dataclass(frozen=True)
class FittedSite:
    """Result of the fit of one site.

    Attributes:
        layer: its layer.
        module: `attn` or `mlp`.
        cost: mean KL divergence that skipping it adds, to second order, in nats per token: half the
            mean of what `measure_costs` gives.
        explained: held-out deviance, in nats per token, that its router explains beyond the mean.
        ridge: the chosen penalty; None if the mean alone predicts better.
    """

    layer: int
    module: str
    cost: float
    explained: float
    ridge: float | None


def fit_model(
    model: nn.Module, text: Tensor, config: TrainConfig, progress: Progress
) -> list[FittedSite]:
    """Fit stand-ins and routers, in place; margins are then logarithms of predicted costs.

    The model has new routers, and its weights are frozen here. `text` [N, T] are token ids of
    training text, and `progress` opens a phase for each pass over them.

    Returns:
        The result of every site, in forward order.

    Raises:
        DataError: the text is shorter than a regression needs.
        TrainingError: a gradient is NaN or infinite.
        ConfigError: the routers decide for whole sequences.
    """
    stage = config.fit_stage
    sample = check_length(model, text, stage.tokens)
    model.requires_grad_(False)
    if stand_ins(model):
        with progress("fitting stand-ins") as on_step:
            fit_stand_ins(model, subsample_rows(text, stage.stand_in_tokens), on_step=on_step)
    found = []
    groups = list(layer_groups(model, sample.numel()))
    for number, layers in enumerate(groups, 1):
        label = "measuring costs" + (f" {number}/{len(groups)}" if len(groups) > 1 else "")
        with progress(label) as on_step:
            costs = measure_costs(
                model,
                sample,
                layers=layers,
                draws=stage.draws,
                batch_size=stage.batch_size,
                seed=config.seed,
                on_step=on_step,
            )
        with progress("fitting routers") as on_step:
            found += fit_routers(model, costs, stage.by_token, config.seed, on_step)
        del costs  # with their inputs, before those of the next group are stored
    return found


def check_length(model: nn.Module, text: Tensor, tokens: int) -> Tensor:
    """Return rows of a text [N, T] with so many tokens; raise DataError if those are too few."""
    width, sample = hidden_size(model), subsample_rows(text, tokens)
    if sample.numel() < 2 * width:
        raise DataError(
            "fitting routers",
            got=f"{sample.numel():,} tokens of training text",
            expected=f"{2 * width:,} or more: two for each of the {width:,} weights of a router",
            todo="give more text with --data"
            if sample.numel() < tokens
            else f"raise fit_stage.tokens to {2 * width}",
        )
    return sample


def fit_routers(
    model: nn.Module,
    costs: dict[Site, SiteValues],
    by_token: bool = True,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> list[FittedSite]:
    """Make the margin of each measured router the logarithm of the cost it predicts, in place.

    It is predicted from what the router reads (`by_token`), or from the site's mean alone. The seed
    is that of heads with hidden layers.
    """
    found: list[FittedSite] = []
    device = next(model.parameters()).device
    design: tuple[Tensor, Design] | None = None
    for site, each in costs.items():
        router = routers(model)[site]
        mean = each.value.mean().item()
        if mean == 0:
            logger.warning(
                "layer %d, %s: skipping it costs nothing on this text; it is skipped first", *site
            )
        if mean == 0 or not by_token:
            set_constant(router, math.log(mean) if mean else -NEVER)
            found.append(FittedSite(*site, mean / 2, 0.0, None))
        else:
            read = cast("Tensor", each.read)
            if design is None or design[0] is not read:
                design = read, Design(read.to(device))
            predicted = write_router(router, design[1], each.value.to(device), seed)
            found.append(FittedSite(*site, mean / 2, predicted.explained, predicted.ridge))
        if on_step:
            on_step(len(found), len(costs))
    return found


def price_margins(model: nn.Module, savings: Savings) -> None:
    """Turn margins from log costs into log costs per share of the budget saved, in place.

    A site whose stand-in costs more than the module saves is never skipped.
    """
    saved_by_site = saved_by_router(model, savings)
    for site, router in routers(model).items():
        saved = saved_by_site[site]
        if saved <= 0:
            set_constant(router, NEVER)
        else:
            add_to_margin(router, -math.log(saved * len(savings.by_site)))


def centre_margins(model: nn.Module) -> None:
    """Shift all margins, and the curves with them, so that the current threshold becomes 0.

    Stages that sample decide at 0. No decision of the calibrated model changes.
    """
    state = routing_state(model)
    rule, curves = state.rule, state.curves
    if curves is None or not isinstance(rule, Threshold) or not math.isfinite(rule.value):
        return
    for router in routers(model).values():
        add_to_margin(router, -rule.value)
    state.curves = curves.shifted(-rule.value)
    state.rule = Threshold(0.0)


def summary(found: list[FittedSite]) -> dict[str, Any]:
    """Plain JSON types: every site, and the means of both kinds."""
    sites = [dataclasses.asdict(each) for each in found]
    means = {
        kind: sum(s.explained for s in found if s.module == kind)
        / max(1, sum(s.module == kind for s in found))
        for kind in ("attn", "mlp")
    }
    return {"explained": means, "sites": sites}


def input_bytes(model: nn.Module, tokens: int) -> int:
    """Return the bytes of what the routers of one layer read at so many tokens."""
    config = routing_state(model).config
    each = tokens * hidden_size(model) * (2 if config.normalize else 4)
    return each if config.input == "layer_input" else 2 * each


def layer_groups(model: nn.Module, tokens: int) -> Iterator[list[int]]:
    """Yield groups of layers whose router inputs fit into memory together."""
    at_once = max(1, INPUT_BYTES // input_bytes(model, tokens))
    indices = [layer.index for layer in routed_layers(model)]
    for first in range(0, len(indices), at_once):
        yield indices[first : first + at_once]
