"""Measure a device for execution `auto`: matmul throughput, bandwidth and the cost of packing.

Packing is timed in PyTorch: where kernels run, `auto` has nothing to choose.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from skipgpt.benchmark.timing.clock import Task, alternate
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import MODULES, Forced, Site
from skipgpt.system.device_profile import Machine

ROWS, WIDTH, WEIGHTS = 512, 2048, 16 << 20
"""Sizes of the large matmul, and of the weights read for one row: too many for any cache."""
TOKENS, LAYERS = 64, 8
"""Sizes of a model so small that only packing takes time."""


@torch.inference_mode()
def profile_machine(
    device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 15
) -> Machine:
    """Measure a device in a few seconds, with weights and matmuls of a dtype.

    Example:
        machine = profile_machine(torch.device("cpu"))
        skipgpt.system.device_profile.store_profile(machine, torch.device("cpu"), torch.float32)
    """
    make = partial(torch.ones, device=device, dtype=dtype)
    rows, weight = make(ROWS, WIDTH), make(WIDTH, WIDTH)
    row, many = make(1, WIDTH), make(WEIGHTS // WIDTH, WIDTH)
    ids = torch.ones(1, TOKENS, dtype=torch.long, device=device)
    half = torch.arange(TOKENS, device=device)[None] % 2 == 0
    tasks = {
        "product": Task(lambda _: linear(rows, weight)),
        "read": Task(lambda _: linear(row, many)),
    }
    for module in MODULES:
        sites = [Site(layer, module) for layer in range(LAYERS)]
        for kind in ("gated", "sparse"):
            model = _small_model().to(device, dtype)
            state = routing_state(model)
            state.rule, state.execution = Forced(dict.fromkeys(sites, half)), kind
            tasks[f"{module} {kind}"] = Task(partial(_run, model, ids))
    seconds = {
        name: statistics.median(each)
        for name, each in alternate(tasks, repeats, device, warmup=3).items()
    }
    attn, mlp = (
        max(1e-6, (seconds[f"{module} sparse"] - seconds[f"{module} gated"]) / LAYERS)
        for module in MODULES
    )
    return Machine(
        flops=2 * ROWS * WIDTH * WIDTH / seconds["product"],
        bandwidth=many.numel() * many.element_size() / seconds["read"],
        mlp_packing=mlp,
        attn_packing=attn,
    )


def _small_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    # Kernels, which pack nothing, are off in training mode; the model has no dropout.
    return add_routers(LlamaForCausalLM(config)).train()


def _run(model: Any, ids: Tensor, _: object) -> None:
    model(input_ids=ids, use_cache=False, logits_to_keep=1)
