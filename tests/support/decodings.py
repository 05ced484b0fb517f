"""Ways to decode."""

from typing import Any


def lengths(trace: Any) -> list[int]:
    """How many tokens each forward had."""
    return [step.decisions[0].attn.keep.shape[1] for step in trace.steps]
