"""Reference runs: a static model with the FLOPs of the measured run, and compiled dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipgpt.benchmark.subject import Subject, sharing
from skipgpt.benchmark.timing.candidate import Candidate, NotApplicable
from skipgpt.benchmark.timing.clock import Task
from skipgpt.cost import Forward, Work, layer_flops, work
from skipgpt.errors import UnsupportedModelError, in_brief
from skipgpt.export.rebuild import smaller_model
from skipgpt.model.loading.bitsandbytes import quantization_of
from skipgpt.model.surgery import add_routers, routed_layers


@dataclass(frozen=True, eq=False)
class Static:
    """A smaller model of the same family, with whole layers removed.

    Attributes:
        model: an ordinary transformers model on the same weights.
        counted: the same with routers, to count its cost as a dense model.
        sparsity: share of modules removed.
        note: description, with the FLOPs that whole layers allow.
    """

    model: Any
    counted: Any
    sparsity: float
    note: str


def static_depth(subject: Subject, forward: Forward, run: Work) -> Static:
    """Remove random layers of the dense model until its FLOPs are closest to those of a run.

    Attention and MLP alternate in a model of the family, so they are removed in equal numbers;
    which ones does not change the cost where layers are alike.

    Raises:
        NotApplicable: layers of this model cannot be left out.
    """
    if kind := quantization_of(subject.dense):
        raise NotApplicable(f"layers cannot be left out of a model held in {kind}")
    layers, dense = routed_layers(subject.routed), work(subject.routed, forward).flops
    order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(0)).tolist()
    flops = [dense]
    for index in order[:-1]:
        flops.append(flops[-1] - sum(layer_flops(layers[index], forward)))
    gone = min(range(len(flops)), key=lambda count: abs(flops[count] - run.flops))
    kept = sorted(order[gone:])
    try:
        model = _on_weights(subject, kept)
    except UnsupportedModelError as error:
        raise NotApplicable(str(error)) from error
    note = (
        f"static is a model of {len(kept)} of the {len(layers)} layers, chosen at random: its "
        f"forward takes {flops[gone] / dense:.1%} of the dense FLOPs, a sparse one "
        f"{run.flops / dense:.1%}"
    )
    return Static(model, add_routers(sharing(model)), gone / len(layers), note)


def compiled(make: Callable[[Any], Task], model: Any) -> Candidate:
    """Compile a dense model for the task that `make` makes of it, and run it to see that it works.

    Raises:
        NotApplicable: it does not compile here, for example without a C++ compiler.
    """
    try:
        model.compile()  # at its first run, which may be in `make`
        task = make(model)
        task.run(task.prepare())
    except Exception as error:
        # Compilers and drivers raise errors of any type; the other candidates are still timed.
        reason = f"torch.compile failed on this machine ({in_brief(error)})"
        raise NotApplicable(reason) from error
    return Candidate("compiled", task)


def _on_weights(subject: Subject, kept: Sequence[int]) -> Any:
    """Build the smaller model, with non-weight tensors (rotary tables) from the dense one."""
    model = smaller_model(subject.routed, [(index, index) for index in kept])
    for name, module in model.named_modules():
        twin = subject.dense.get_submodule(name)
        for key, value in [*module.named_buffers(recurse=False), *vars(module).items()]:
            if isinstance(value, Tensor) and value.is_meta:
                setattr(module, key, copy.deepcopy(getattr(twin, key)))
    return model
