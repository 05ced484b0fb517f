"""From margins to decisions: which tokens run a module, and through which gate.

A `Decision` is a value: made by a rule, used by the layer, seen from outside only through
`record_routing`. Rules are small frozen values, too, so that training, inference, forced routes
and baselines differ in nothing but the rule in force.

Shapes: B batch, T query tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from skipgpt.routing.noise import RowNoise

Module = Literal["attn", "mlp"]
MODULES: tuple[Module, Module] = ("attn", "mlp")


class Site(NamedTuple):
    """One module of one layer."""

    layer: int
    module: Module

    def __str__(self) -> str:
        return f"{self.layer}.{self.module}"


@dataclass(frozen=True, eq=False)
class ModuleDecision:
    """Which tokens run one module.

    Attributes:
        keep: [B, T] bool, True where the module runs.
        gate: [B, T] float that the module's output is multiplied by in `gated` execution: 0 or 1
            in the forward pass, with whatever gradient the rule gives it.
        margin: [B, T] float, the router's keep logit minus its skip logit.
        kept: how many tokens keep it, where the host knows.
    """

    keep: Tensor
    gate: Tensor
    margin: Tensor
    kept: int | None = None

    @classmethod
    def hard(cls, keep: Tensor, margin: Tensor) -> ModuleDecision:
        """A decision that carries no gradient."""
        return cls(keep, keep.to(margin.dtype), margin)

    @classmethod
    def all_kept(cls, shape: torch.Size, device: torch.device) -> ModuleDecision:
        """Every token of a batch [B, T] runs the module, whatever its margin is."""
        keep = torch.ones(shape, dtype=torch.bool, device=device)
        gate = keep.float()
        return cls(keep, gate, gate, keep.numel())

    def expanded(self, shape: torch.Size) -> ModuleDecision:
        """The decision of each row [B, 1] as that of all its tokens [B, T]."""
        keep, gate, margin = (each.expand(shape) for each in (self.keep, self.gate, self.margin))
        return ModuleDecision(keep, gate, margin)


@dataclass(frozen=True, eq=False)
class Decision:
    """What one layer runs in one forward."""

    attn: ModuleDecision
    mlp: ModuleDecision


class DecisionRule(Protocol):
    """Turns the margins [B, T] of one module into its decision.

    A rule may also have `keeps(margins, site)`, which decides the same for few tokens, one per
    sequence, without tensors; and `keyed(noise)`, which returns the same rule drawing its random
    numbers from `noise`.
    """

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        ...


@dataclass(frozen=True)
class Threshold:
    """Inference: keep iff the margin is above the threshold. Never sampled.

    `-inf` keeps everything.
    """

    value: float = 0.0

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        return ModuleDecision.hard(margin > self.value, margin)

    def keeps(self, margins: list[float], site: Site) -> list[bool]:
        """Decide for few tokens, without tensors."""
        value = as_float32(self.value)
        return [as_float32(margin) > value for margin in margins]


@dataclass(frozen=True)
class GumbelSample:
    """Training: a Gumbel-softmax sample with a straight-through gradient (paper).

    The difference of two Gumbel variables is logistic, so one draw per decision suffices. The gate
    is 0 or 1 in the forward pass; backwards it is `sigmoid((margin + noise) / temperature)`.

    Attributes:
        temperature: of the gradient.
        noise: source of the draws; torch's own generator where None.
        scale: of the noise; 1 is the paper's.
    """

    temperature: float = 1.0
    noise: RowNoise | None = None
    scale: float = 1.0

    def keyed(self, noise: RowNoise) -> GumbelSample:
        """The same rule, drawing from `noise`."""
        return replace(self, noise=noise)

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        if self.noise is None:
            uniform = torch.rand_like(margin, dtype=torch.float32)
        else:
            shape = margin.shape[0], margin.shape[1]
            uniform = self.noise.uniform(shape, str(site), margin.device)
        noise = torch.logit(uniform.clamp(1e-7, 1 - 1e-7)) * self.scale
        soft = torch.sigmoid((margin + noise) / self.temperature)
        keep = soft > 0.5
        return ModuleDecision(keep, keep.to(soft.dtype) + (soft - soft.detach()), margin)


@dataclass(frozen=True)
class StraightThrough:
    """Training without noise: decide by the threshold, pass the sigmoid's gradient."""

    temperature: float = 1.0

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        soft = torch.sigmoid(margin / self.temperature)
        keep = margin > 0
        return ModuleDecision(keep, keep.to(soft.dtype) + (soft - soft.detach()), margin)


@dataclass(frozen=True)
class Forced:
    """Decisions given from outside: by site, a bool for all tokens or a [B, T] tensor.

    Attributes:
        keep: what each named site does.
        default: what every other site does.
    """

    keep: Mapping[Site, bool | Tensor] = field(default_factory=dict)
    default: bool = True

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        wanted = torch.as_tensor(self.keep.get(site, self.default), device=margin.device)
        return ModuleDecision.hard(wanted.bool().expand(margin.shape), margin)

    @classmethod
    def without(cls, skipped: list[Site] | frozenset[Site]) -> Forced:
        """Static removal: these sites never run."""
        return cls(dict.fromkeys(skipped, False))


@dataclass(frozen=True)
class RandomRoutes:
    """Random decisions: each skips with probability `sparsity`, one for all or one per site."""

    sparsity: float | Mapping[Site, float]

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        """Decide for one module."""
        keep = torch.empty(margin.shape, dtype=torch.bool, device=margin.device)
        return ModuleDecision.hard(keep.bernoulli_(1 - self._share(site)), margin)

    def keeps(self, margins: list[float], site: Site) -> list[bool]:
        """Decide for few tokens, by the same draw."""
        keep = torch.empty(len(margins), 1, dtype=torch.bool).bernoulli_(1 - self._share(site))
        return keep.flatten().tolist()

    def _share(self, site: Site) -> float:
        given = self.sparsity
        return given[site] if isinstance(given, Mapping) else given


def as_float32(number: float) -> float:
    """A number as a tensor of float32 holds it, so that both ways of comparing agree."""
    return ctypes.c_float(number).value


RuleAt = Callable[[float], DecisionRule]
"""The rule in force after this share (0 to 1) of a training stage."""
