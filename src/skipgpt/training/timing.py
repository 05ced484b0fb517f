"""How much faster a healing step is than a dense one."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from skipgpt.model.state import Execution, execution
from skipgpt.system.hardware import wait_for
from skipgpt.system.progress import advancing


@advancing("timing steps of stage lora beside dense ones")
def training_speedup(model: Any, batch: Tensor, repeats: int = 3) -> float:
    """Return dense over sparse seconds of a forward and backward on token ids [B, T].

    They are medians of alternating runs, after a pair that warms up.
    """
    times: dict[Execution, list[float]] = {"dense": [], "sparse": []}
    device = next(model.parameters()).device
    batch = batch.to(device)
    was_training = model.training
    model.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for _ in range(repeats + 1):
            for kind, seconds in times.items():
                wait_for(device)
                started = time.perf_counter()
                with execution(model, kind):
                    model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
                wait_for(device)
                seconds.append(time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return statistics.median(times["dense"][1:]) / statistics.median(times["sparse"][1:])
