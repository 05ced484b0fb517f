"""What a stopped run says of the states on its disk."""

from __future__ import annotations

import json
import os
from itertools import permutations
from pathlib import Path

import pytest

from skipgpt.training.run_record import what_a_stop_leaves

STAGES = ("fit", "router", "lora")


@pytest.mark.parametrize("order", list(permutations(STAGES)))
def test_the_newest_state_is_named_in_whatever_order_the_folder_lists_them(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    told = what_a_stop_leaves(tmp_path, resumed=False)
    for stage in order:
        state = tmp_path / "trainer" / stage / "checkpoint-7" / "trainer_state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"global_step": 7}))
        time = 1_000_000 + STAGES.index(stage)
        os.utime(state, (time, time))
    (tmp_path / "run.json").write_text(json.dumps({"finished": ["fit", "router"]}))
    assert told() == (
        "what finished (fit, router) is kept and the state was saved at step 7 of stage lora; "
        "the same command with --resume goes on from it"
    )
