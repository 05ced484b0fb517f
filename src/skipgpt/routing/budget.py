"""The budget: how much is kept, how far that is from the target, and the schedules around it.

Everything is a pure function. Padding does not count. In unit `modules` attention and MLP count the
same, so that sparsity is one minus the share of (real token, module) pairs that run.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def saved_share(
    gates: list[Tensor], weights: Sequence[float], real: Tensor | None = None
) -> Tensor:
    """The sum over modules of what skipping one saves, times the share of tokens that skip it.

    With equal weights that add up to 1 it is one minus the mean of the gates (paper).

    Args:
        gates: one [B, T] tensor per module, bool or float; gradients pass through floats.
        weights: what each module saves where every token skips it.
        real: [B, T] bool, False at padding; None where all tokens are real.

    Example:
        >>> gates = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
        >>> saved_share(gates, [0.2, 0.5])
        tensor(0.6000)
    """
    tokens = gates[0].numel() if real is None else real.sum()
    kept = (gate.float().sum() if real is None else (gate.float() * real).sum() for gate in gates)
    saved = [weight * (1 - each / tokens) for weight, each in zip(weights, kept, strict=True)]
    total: Tensor = sum(saved[1:], saved[0])
    return total


def budget_loss(
    sparsity: Tensor, target: float, whole: Tensor | None = None, softness: float = 0.0
) -> Tensor:
    """`abs(target - sparsity)` (paper) or its Huber form, exact when a batch comes in parts.

    The distance of a mean is not the mean of distances, so a part needs the slope of the whole
    batch. Given the sparsity of the whole, the parts' terms, weighted by their shares, add up to
    the whole's term in value and in gradient.

    Args:
        sparsity: of this part, a scalar with gradient.
        target: the sparsity wanted.
        whole: of the whole batch, without gradient; None where this part is the whole.
        softness: the distance within which the term is quadratic and its slope below 1. Where the
            slope is always 1 the sparsity oscillates around the target, which drowns out the
            language-model loss.

    Example:
        >>> budget_loss(torch.tensor(0.1), target=0.25)
        tensor(0.1500)
    """
    miss = (sparsity if whole is None else whole).detach() - target
    slope = (miss / softness).clamp(-1, 1) if softness else miss.sign()
    return slope * (sparsity - target) - softness / 2 * slope**2


def linear_between(start: float, end: float, progress: float) -> float:
    """The value at this share (0 to 1) of the way; flat beyond both ends.

    Example:
        >>> linear_between(5.0, 1.0, 0.5)
        3.0
    """
    return start + (end - start) * min(1.0, max(0.0, progress))
