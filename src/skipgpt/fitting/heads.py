"""Fits a router's head to costs: in closed form, or by gradient descent for hidden layers."""

from __future__ import annotations

import torch
from torch import Tensor

from skipgpt.fitting.regression import HELD_OUT, CostModel, Design, deviance
from skipgpt.routing.router import KEEP, SKIP, LinearRouter, Router, add_to_margin, set_constant
from skipgpt.system.sharded import assign, full_tensor

STEPS, ROWS, RATE = 1000, 1024, 3e-3
"""Steps, rows per step and learning rate of AdamW on stored inputs, without model forwards."""


def write_router(router: Router, design: Design, cost: Tensor, seed: int = 0) -> CostModel:
    """Make a router's margin the logarithm of the cost [N] that a design predicts, in place.

    The seed is that of initial weights and row order, if the head has a hidden layer. Of the cost
    model that is returned, then only `ridge` and `explained` are meaningful.
    """
    if isinstance(router, LinearRouter):
        found = design.predict(cost)
        set_constant(router, 0.0)
        add_linear(router, found.weight, found.bias)
        return found
    return _descend(router, design, cost, seed)


@torch.no_grad()
def add_linear(router: Router, weight: Tensor | None, bias: float) -> None:
    """Add a map [F] of the last layer's inputs, if any, and a bias to a router's margin."""
    add_to_margin(router, bias)
    if weight is not None:
        last = router.last
        moved = full_tensor(last.weight).clone()
        moved[KEEP] += weight / 2
        moved[SKIP] -= weight / 2
        assign(last.weight, moved)


@torch.no_grad()
def last_inputs(router: Router, read: Tensor) -> Tensor:
    """Return what a router's last layer reads, [N, F], where the router reads [N, D]."""
    if isinstance(router, LinearRouter):
        return read
    seen: list[Tensor] = []
    hook = router.last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    router(read.to(router.last.weight.dtype))
    hook.remove()
    return seen[0].float()


def _descend(router: Router, design: Design, cost: Tensor, seed: int) -> CostModel:
    """Fit a head with a hidden layer by the same deviance; the best held-out state is kept."""
    read, unit = design.inputs[:, :-1], cost.mean()
    cost = cost / unit
    fitted = len(read) - int(HELD_OUT * len(read))
    set_constant(router, 0.0)
    torch.nn.init.normal_(router.last.weight, std=1e-3, generator=_generator(read, seed))
    router.requires_grad_(True)
    optimizer = torch.optim.AdamW(router.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = _generator(read, seed)
    constant = best = deviance(read.new_zeros(len(read) - fitted), cost[fitted:])
    kept: dict[str, Tensor] | None = None
    for step in range(1, STEPS + 1):
        rows = torch.randint(fitted, (ROWS,), generator=generator, device=read.device)
        eta = router.margin(read[rows]).clamp(-10, 10)
        loss = (cost[rows] * torch.exp(-eta) + eta).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            with torch.no_grad():
                reached = deviance(router.margin(read[fitted:]), cost[fitted:])
            if reached < best:
                best = reached
                kept = {name: value.clone() for name, value in router.state_dict().items()}
    router.requires_grad_(False)
    if kept is None:
        set_constant(router, unit.log().item())
        return CostModel(read.new_zeros(read.shape[1]), unit.log().item(), None, 0.0)
    router.load_state_dict(kept)
    add_to_margin(router, unit.log().item())
    return CostModel(read.new_zeros(read.shape[1]), unit.log().item(), 0.0, constant - best)


def _generator(read: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(read.device).manual_seed(seed)
