"""`python -m skipgpt`, which tells how the parameters of its first step lie on this process.

Lines of JSON go to a file a process, in the folder that PIECES_FOLDER names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from skipgpt.cli import main
from skipgpt.model.families.parameter_names import kind_of
from skipgpt.system.distributed import rank
from skipgpt.system.sharded import is_sharded
from skipgpt.training.loop.trainer import RoutingTrainer


def _tell(trainer: RoutingTrainer) -> None:
    with (Path(os.environ["PIECES_FOLDER"]) / f"{rank()}.jsonl").open("a") as file:
        for name, each in trainer.model.named_parameters():
            here: Any = each
            told = {
                "stage": trainer.plan.stage,
                "name": name,
                "kind": kind_of(name),
                "in_pieces": is_sharded(each),
                "whole": each.numel(),
                "here": here.to_local().numel() if is_sharded(each) else each.numel(),
            }
            file.write(json.dumps(told) + "\n")


class TellingTrainer(RoutingTrainer):
    """The trainer, asked for its parameters once its first step is done."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 0:
            _tell(self)
        return loss


def tell_pieces() -> None:
    """Let a run of this process train with it."""
    import skipgpt.evaluation.calibrate
    import skipgpt.training.loop.trainer

    skipgpt.evaluation.calibrate.CURVE = (0.0, 0.25, 0.5)  # as in `support/ready.py`
    skipgpt.training.loop.trainer.RoutingTrainer = TellingTrainer  # type: ignore[misc]


if __name__ == "__main__":
    tell_pieces()
    main()
