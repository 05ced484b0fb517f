"""The result of a static export, as text and as JSON types."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from skipgpt.config import LoraStage
from skipgpt.routing.decision import Site


@dataclass(frozen=True)
class StaticExport:
    """What was removed, and what it cost.

    Attributes:
        out: the folder.
        keep_rate: share of two neighbours' parameters (`vllm`: of tokens) below which they go.
        keep_rates: that share by site, `3.mlp`, on calibration text.
        removed: removed sites.
        kept_anyway: sites that fewer tokens keep and that stayed, so that layers could be formed.
        layers: for each new layer the layers that its attention and its MLP come from; None
            where it has none, which only the form for serving engines allows.
        layers_before: decoder layers of the base model.
        layers_after: those of the result.
        parameters_before: of the base model, routers and LoRA left out.
        parameters_after: of the result.
        losses: nats per token on held-out text: `dense` (all modules, LoRA merged), `routed` (the
            checkpoint), `static` (without the removed sites) and, if requested, `healed`.
        heal: settings of healing, if any.
        tokens: how many tokens were predicted for each loss.
    """

    out: str
    keep_rate: float
    keep_rates: dict[str, float]
    removed: tuple[Site, ...]
    kept_anyway: tuple[Site, ...]
    layers: tuple[tuple[int | None, int | None], ...]
    layers_before: int
    layers_after: int
    parameters_before: int
    parameters_after: int
    losses: dict[str, float]
    tokens: int
    heal: LoraStage | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a site is `3.mlp`."""
        sites = {name: [str(s) for s in getattr(self, name)] for name in ("removed", "kept_anyway")}
        return dataclasses.asdict(self) | sites | {"layers": [list(pair) for pair in self.layers]}

    def __str__(self) -> str:
        gone = 1 - self.parameters_after / self.parameters_before
        kept = f"; kept anyway: {', '.join(map(str, self.kept_anyway))}" if self.kept_anyway else ""
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in self.losses.items())
        return (
            f"removed {', '.join(map(str, self.removed))}{kept}\n"
            f"layers {self.layers_before} -> {self.layers_after}, parameters "
            f"{self.parameters_before:,} -> {self.parameters_after:,} ({gone:.1%} fewer)\n"
            f"nats per token over {self.tokens:,} held-out tokens: {losses}"
        )
