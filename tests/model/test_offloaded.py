"""Weights that come only while their module is called, as accelerate's offloading has it."""

from __future__ import annotations

import itertools

import accelerate
import torch

from cases import CLOSE, families_with, routed
from skipgpt.model.state import execution

CASES = [*itertools.product(("gated", "sparse", "auto"), (1, 3))]


@families_with("kind, batch", CASES, few=[("gated", 3), ("sparse", 1), ("auto", 3)])
@torch.no_grad()
def test_an_offloaded_model_gives_the_same_logits(family: str, kind: str, batch: int) -> None:
    model = routed(family, stand_in=3, normalize=True)
    ids = torch.randint(1, 257, (batch, 9), generator=torch.Generator().manual_seed(3))
    with execution(model, kind):
        expected = model(ids).logits, model(ids[:, :1]).logits
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        got = model(ids).logits, model(ids[:, :1]).logits
    for each, right in zip(got, expected, strict=True):
        torch.testing.assert_close(each, right, **CLOSE)
