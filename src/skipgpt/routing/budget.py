"""The budget: how much is kept, how far that is from the target, and the schedules around it.

Everything is a pure function. Sparsity is one minus the share of (real token, module) pairs that
run: padding does not count, attention and MLP count the same.
"""

from __future__ import annotations

import random

from torch import Tensor

from skipgpt.config import MAX_SPARSITY


def keep_ratio(gates: list[Tensor], real: Tensor | None = None) -> Tensor:
    """Mean of the gates over real tokens and modules (paper).

    Args:
        gates: one [B, T] tensor a module, bool or float; gradients pass through floats.
        real: [B, T] bool, False at padding; None where all tokens are real.

    Returns:
        A scalar from 0 to 1.

    Example:
        >>> keep_ratio([torch.tensor([[1.0, 0.0, 1.0]])], torch.tensor([[True, True, False]]))
        tensor(0.5000)
    """
    kept = [_kept(gate.float(), real) for gate in gates]
    tokens = gates[0].numel() if real is None else real.sum()
    total: Tensor = sum(kept[1:], kept[0]) / (tokens * len(gates))
    return total


def _kept(gate: Tensor, real: Tensor | None) -> Tensor:
    return gate.sum() if real is None else (gate * real).sum()


def budget_loss(sparsity: Tensor, target: float, whole: Tensor | None = None) -> Tensor:
    """`abs(target - sparsity)` (paper), exact when a batch comes in parts.

    The distance of a mean is not the mean of distances, so a part must be pulled in the direction
    that the whole batch needs. Given the sparsity of the whole, the parts' terms, weighted by
    their shares, add up to the whole's term in value and in gradient.

    Args:
        sparsity: of this part, a scalar with gradient.
        target: the sparsity wanted.
        whole: of the whole batch, without gradient; None where this part is the whole.

    Example:
        >>> budget_loss(torch.tensor(0.1), target=0.25)
        tensor(0.1500)
    """
    direction = (sparsity.detach() if whole is None else whole.detach()).sub(target).sign()
    return direction * (sparsity - target)


def linear_between(start: float, end: float, progress: float) -> float:
    """The value at this share (0 to 1) of the way; flat beyond both ends.

    Example:
        >>> linear_between(5.0, 1.0, 0.5)
        3.0
    """
    return start + (end - start) * min(1.0, max(0.0, progress))


def target_at(target: float, progress: float, ramp: float) -> float:
    """The sparsity aimed at after this share of a stage: rises from 0 over the first `ramp`."""
    return target if ramp <= 0 else linear_between(0.0, target, progress / ramp)


def drawn_target(target: float, spread: float, step: int, seed: int) -> float:
    """The sparsity that a step aims at: uniform within `spread` of the target, from 0 up to 0.95.

    The same for every part of a step and in a resumed run, as it depends on nothing else.
    """
    chance = random.Random(f"{seed} {step}").uniform(-spread, spread)
    return min(MAX_SPARSITY, max(0.0, target + chance))
