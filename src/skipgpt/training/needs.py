"""Estimated needs of a run: memory, FLOPs and hours of each stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from skipgpt.config import Stage
from skipgpt.cost.memory import Held, Layout, Memory
from skipgpt.model.state import Execution

_LABELS = {
    "weights": "weights",
    "at_work": "gathered while layers run",
    "gradients": "gradients",
    "optimizer": "state of the optimizer",
    "buckets": "gradient buckets",
    "activations": "activations",
    "logits": "logits in the loss",
    "total": "total",
    "stand_in_sums": "sums for stand-ins",
    "router_inputs": "inputs of routers",
    "one_by_one": "total, one after the other",
}


@dataclass(frozen=True)
class HostMemory:
    """Bytes that stage `fit` keeps in the memory of the machine, beside the base.

    Attributes:
        stand_in_sums: what stand-ins are fitted from.
        router_inputs: what routers are fitted to.
    """

    stand_in_sums: float = 0.0
    router_inputs: float = 0.0

    @property
    def total(self) -> float:
        """The larger one: sums are dropped before inputs are stored."""
        return max(self.stand_in_sums, self.router_inputs)


@dataclass(frozen=True)
class StageNeeds:
    """What one stage takes.

    Attributes:
        stage: its name.
        execution: execution of its forwards; `gated` runs every module for all tokens.
        held: parameters and bytes to hold, over all devices.
        memory: bytes on each device.
        rows: rows per forward on each device.
        parts: forwards per step on each device.
        step_flops: FLOPs per step, over all devices.
        seconds: seconds per step.
        hours: hours for all steps.
        host_memory: bytes in the memory of the machine, on top of `memory` if that is the device.
    """

    stage: Stage
    execution: Execution
    held: Held
    memory: Memory
    rows: int
    parts: int
    step_flops: float
    seconds: float
    hours: float
    host_memory: HostMemory = HostMemory()


@dataclass(frozen=True)
class DryRun:
    """What a run would take.

    Attributes:
        layout: how the model is spread.
        processes: number of processes, one per device.
        tokens: tokens per row.
        dtype: dtype of the base model.
        activation_checkpointing: whether layers are recomputed in the backward pass.
        device_flops: FLOPs per second that a device is assumed to reach.
        loading: bytes of the base, which each machine reads into its own memory first; once for all
            its processes if it is stored in `dtype`, else once for each.
        stages: what each takes.
    """

    layout: Layout
    processes: int
    tokens: int
    dtype: str
    activation_checkpointing: bool
    device_flops: float
    loading: float
    stages: tuple[StageNeeds, ...]

    def __str__(self) -> str:
        devices = "1 device" if self.processes == 1 else f"{self.processes} devices"
        lines = [
            f"{devices}, {self.layout}, base in {self.dtype}, {self.tokens} tokens per row, "
            f"activation checkpointing {'on' if self.activation_checkpointing else 'off'}",
            f"the base, read into the memory of each machine: {_amount(self.loading).strip()}",
        ]
        for each in self.stages:
            rows = self.processes * each.parts * each.rows
            lines += [
                f"stage {each.stage}: {each.held.trained:,} parameters train, "
                f"{each.held.parameters:,} of the base rest; {each.execution}",
                f"  {rows} rows per step; forwards per device: {each.parts}, of {each.rows} rows",
                *(
                    f"  {_LABELS[name]:26} {_amount(value)} per device"
                    for name, value in [*vars(each.memory).items(), ("total", each.memory.total)]
                    if value
                ),
                *(
                    f"  {_LABELS[name]:26} {_amount(value)} in the memory of the machine"
                    for name, value in [
                        *vars(each.host_memory).items(),
                        ("one_by_one", each.host_memory.total),
                    ]
                    if value
                ),
                f"  {each.step_flops:.3g} FLOPs per step: {each.seconds:.3g} s at "
                f"{self.device_flops:.3g} FLOPs per second and device, {each.hours:.3g} h in all",
            ]
        left_out = "not counted: allocator overhead, communication, loading, evaluation"
        return "\n".join([*lines, left_out])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the memory of each stage with its totals."""
        plain: dict[str, Any] = dataclasses.asdict(self)
        for each, stage in zip(plain["stages"], self.stages, strict=True):
            each["memory"]["total"] = stage.memory.total
            each["host_memory"]["total"] = stage.host_memory.total
        return plain


def _amount(count: float) -> str:
    """Format bytes in GB or MB."""
    return f"{count / 1e9:9.2f} GB" if count >= 1e8 else f"{count / 1e6:9.2f} MB"
