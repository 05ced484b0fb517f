"""What a training run produced."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.evaluation.perplexity import Perplexity


@dataclass(frozen=True)
class TrainResult:
    """What a run produced.

    Attributes:
        info: info of the checkpoint that was written.
        held_out: loss and sparsity on held-out text: `dense`, then one entry per stage.
        folder: folder of the checkpoint.
        seconds_measuring: seconds of this call spent on the losses in `held_out`.
    """

    info: CheckpointInfo
    held_out: dict[str, Perplexity]
    folder: str
    seconds_measuring: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)
