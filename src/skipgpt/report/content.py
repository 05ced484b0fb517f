"""The content of a report, from which the page, Markdown, JSON and figures are rendered."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipgpt.analysis.table import Part, Table
from skipgpt.analysis.trace import Text, TextTrace
from skipgpt.config import BUDGET_NOUNS, Budget
from skipgpt.evaluation.perplexity import Perplexity

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Stop:
    """The text at one sparsity of the slider.

    Attributes:
        asked: requested sparsity, in the unit of the report.
        keep: [L, M, N] bool, which token ran which module.
        measured: loss and sparsity at it.
    """

    asked: float
    keep: Tensor
    measured: Perplexity

    def to_dict(self, tokens: int) -> dict[str, Any]:
        """Plain JSON types, with the decisions of the first tokens as packed bits."""
        return {
            "asked": self.asked,
            **self.measured.to_dict(),
            "keep": packed_bits(self.keep[..., :tokens]),
        }


@dataclass(frozen=True, eq=False)
class Report:
    """Everything about one checkpoint on one text.

    Attributes:
        title: title of the page.
        facts: provenance: `date`, `hardware`, `sources`, `read` (how the text was cut), `notes`.
        checkpoint: content of `skipgpt_config.json`.
        cost: parameters, FLOPs and bytes, dense and routed, and the ideal speed-ups.
        dense: loss of the base model on the same text.
        stops: measured sparsities, ascending; one where the checkpoint is not calibrated.
        at: index of the stop that the checkpoint is set to; the tables describe that one.
        trace: trace of the text at that stop.
        surprisal: [N] nats under the dense model, nan at the first token of a row.
        tables: the analyses, in the order of the page.
        run: how the checkpoint was made: `run` (run.json) and `metrics` (metrics.jsonl); empty
            where the folder has neither.
        budget: unit of the requested sparsities.
        shown: number of tokens whose decisions are on the page.
    """

    title: str
    facts: dict[str, Any]
    checkpoint: dict[str, Any]
    cost: dict[str, Any]
    dense: Perplexity
    stops: tuple[Stop, ...]
    at: int
    trace: TextTrace
    surprisal: Tensor
    tables: tuple[Table, ...]
    run: dict[str, Any] = field(default_factory=dict)
    budget: Budget = "modules"
    shown: int = 4096

    @property
    def text(self) -> Text:
        """The text that was read."""
        return self.trace.text

    @property
    def layers(self) -> int:
        """Number of layers, each of two modules."""
        return len(self.trace.keep)

    @property
    def measured(self) -> Perplexity:
        """Loss and sparsity at the stop that the checkpoint is set to."""
        return self.stops[self.at].measured

    @property
    def numbers(self) -> dict[str, Any]:
        """Cost, losses and sparsities, as `to_dict` has them."""
        return {
            "cost": self.cost,
            "dense": self.dense.to_dict(),
            "routed": self.measured.to_dict(),
            "excess_nll": self.measured.nll_per_token - self.dense.nll_per_token,
        }

    @property
    def reach(self) -> str:
        """Range of each calibration curve, in words; empty where there is none."""
        ends = {unit: curve[-1][0] for unit, curve in self.checkpoint["curves"].items()}
        return ", ".join(f"0 to {end:.0%} of {BUDGET_NOUNS[unit]}" for unit, end in ends.items())

    @property
    def target(self) -> str:
        """Target sparsity of training, in words."""
        noun = BUDGET_NOUNS[self.checkpoint["budget"]]
        return f"{self.checkpoint['target_sparsity']:.1%} of {noun}"

    def table(self, name: str) -> Table:
        """Return the analysis of this name; a KeyError if there is none."""
        return {table.name: table for table in self.tables}[name]

    def of_part(self, part: Part, *besides: str) -> tuple[Table, ...]:
        """Return the tables of a part of the report, in order, but for those of these names."""
        return tuple(t for t in self.tables if t.part == part and t.name not in besides)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of all analyses."""
        return tuple(warning for table in self.tables for warning in table.warnings)

    def __str__(self) -> str:
        """Summarise for a terminal: routed loss, closeness, dense loss, findings, warnings."""
        close = self.measured.closeness
        lines = [str(self.measured), *([str(close)] if close else [])]
        lines.append(f"dense: {self.dense.nll_per_token:.4f} nats per token")
        lines += [f"{table.name}: {each}" for table in self.tables for each in table.findings]
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; decisions of `dial` are encoded by `packed_bits`."""
        shown = min(self.shown, len(self.text))
        return {
            "format": FORMAT,
            "title": self.title,
            "facts": self.facts,
            "checkpoint": self.checkpoint,
            **self.numbers,
            "budget": self.budget,
            "layers": self.layers,
            "modules": self.trace.keep.shape[1],
            "dial": [stop.to_dict(shown) for stop in self.stops],
            "at": self.at,
            "text": {
                "tokens": len(self.text),
                "shown": shown,
                "pieces": list(self.text.pieces[:shown]),
                "row": self.text.row[:shown].tolist(),
                "surprisal": [_rounded(value) for value in self.surprisal[:shown].tolist()],
            },
            "tables": {table.name: table.to_dict() for table in self.tables},
            "warnings": list(self.warnings),
            "run": self.run,
        }


def packed_bits(keep: Tensor) -> str:
    """Encode decisions [L, M, N] as base64: flat element i is bit i % 8 of byte i // 8."""
    packed = np.packbits(keep.flatten().numpy(), bitorder="little")
    return base64.b64encode(packed.tobytes()).decode()


def read_bits(packed: str, shape: Sequence[int]) -> Tensor:
    """Decode `packed_bits`, the field `keep` of a report's JSON, into a bool tensor of this shape.

    Example:
        >>> read_bits(packed_bits(torch.tensor([[[True, False, True]]])), (1, 1, 3)).tolist()
        [[[True, False, True]]]
    """
    data = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    bits = np.unpackbits(data, count=math.prod(shape), bitorder="little")
    return torch.from_numpy(bits.astype(bool)).view(*shape)


def _rounded(value: float) -> float | None:
    """Round nats to three decimals; NaN becomes None."""
    return None if value != value else round(value, 3)
