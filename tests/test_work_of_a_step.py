"""The FLOPs of a training step, against numbers by hand and what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skipgpt.config import LoraStage, RouterConfig, recipe
from skipgpt.cost import Forward, lora_flops, training_flops, work
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import add_routers, routers
from skipgpt.routing.decision import Forced, GumbelSample
from skipgpt.training.stages import prepare, with_lora
from tiny import tiny_base, tiny_routed

# The tiny Llama: D 32, 4 heads of 8, 2 key-value heads, MLP 48, 3 layers, 257 tokens, float32.
KV, QO, QUERIES, RANK = 2 * 32 * 16, 2 * 32 * 32, 32 * 32, 4
TOKENS = 11
FORWARD = Forward(tokens=TOKENS, logits=TOKENS)
STAGE = LoraStage(rank=RANK, dropout=0.0)
CONFIG = recipe("paper", lora_stage=STAGE)
ADAPTERS = {"q_proj": RANK * (32 + 32), "v_proj": RANK * (32 + 16), "gate_proj": RANK * (32 + 48)}


def step_flops(model: nn.Module) -> int:
    """What torch counts in a forward and backward; angles of some releases left out."""
    ids = torch.ones(1, TOKENS, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    counts = counter.get_flop_counts()
    angles = {name: sum(each.values()) for name, each in counts.items() if "rotary_emb" in name}
    return counter.get_total_flops() - max(angles.values(), default=0)


def eager(model: nn.Module) -> nn.Module:
    model.set_attn_implementation("eager")
    return model


def core_of(keep: float) -> float:
    """FLOPs of one layer's scores and weighted values, causality left out as eager does."""
    return 4 * TOKENS * keep * 32 * TOKENS


def counted_core(model: nn.Module, keep: dict | None) -> float:
    """What eager attention computes beyond the half that causality needs, in three products."""
    core = work(model, FORWARD, keep).core
    return 3 * core * (TOKENS / ((TOKENS + 1) / 2) - 1)


def unasked(kept: float) -> float:
    """Gradients towards the embeddings: of what attention of the first layer reads, and its keys.

    Keys there have no LoRA, so that nobody asks for their gradient either.
    """
    inputs = TOKENS * (KV + kept * QUERIES) + RANK * 32 * TOKENS * (1 + kept)
    return 2 * inputs + core_of(kept) / 2


@pytest.mark.parametrize("kept", [11, 6])
def test_the_flops_of_a_healing_step_are_what_torch_counts(kept: int) -> None:
    model = prepare(eager(tiny_routed()), "lora", CONFIG)
    share = kept / TOKENS
    keep = dict.fromkeys(routers(model), share)
    routes = Forced(dict.fromkeys(keep, torch.arange(TOKENS)[None] < kept))
    with use_rule(model, routes), execution(model, "sparse"):
        counted = step_flops(model)
    got = training_flops(model, FORWARD, "lora", keep, lora_flops(model, FORWARD, keep))
    # Of a router's two logits only their difference is computed, and biases are no products.
    routing = 2 * TOKENS * 6 * (32 - (2 * 32 + 2))
    assert counted == round(got + counted_core(model, keep) + routing - unasked(share))


def test_the_flops_of_a_dense_step_are_what_torch_counts() -> None:
    model = prepare(eager(tiny_base()), "lora", CONFIG)
    lora = lora_flops(model, FORWARD)
    assert lora == 2 * TOKENS * 3 * sum(ADAPTERS.values())
    counts = tiny_routed()
    got = training_flops(counts, FORWARD, None, lora=lora)
    assert step_flops(model) == round(got + counted_core(counts, None) - unasked(1.0))


def test_the_flops_of_a_routers_step_are_what_torch_counts() -> None:
    model = prepare(eager(tiny_routed()), "router", CONFIG)
    with use_rule(model, GumbelSample()), execution(model, "gated"):
        counted = step_flops(model)
    got = training_flops(model, FORWARD, "router")
    routing = 3 * 2 * TOKENS * 6 * (32 - (2 * 32 + 2))
    # Nothing in front of the first gate has anything to learn.
    first = 2 * TOKENS * (KV + QO) + 2 * core_of(1.0) + 2 * TOKENS * 2 * 32
    assert counted == round(got + counted_core(model, None) + routing - first)


def test_lora_costs_where_its_module_runs() -> None:
    model = with_lora(tiny_routed(), STAGE)
    keep = {site: 0.5 if site.module == "attn" else 0.25 for site in routers(model)}
    used = 0.5 * ADAPTERS["q_proj"] + ADAPTERS["v_proj"] + 0.25 * ADAPTERS["gate_proj"]
    assert lora_flops(model, FORWARD, keep) == 2 * TOKENS * 3 * used
    skip = with_lora(tiny_routed(router=RouterConfig(kv="skip")), STAGE)
    used -= 0.5 * ADAPTERS["v_proj"]
    assert lora_flops(skip, FORWARD, keep) == 2 * TOKENS * 3 * used


def test_stand_ins_train_where_they_run() -> None:
    plain, stood_in = tiny_routed(), tiny_routed(router=RouterConfig(stand_in=4))
    size, keep = 2 * 4 * 32 + 32, dict.fromkeys(routers(tiny_routed()), 0.75)

    def added(stage: str, keep: dict | None) -> float:
        return training_flops(stood_in, FORWARD, stage, keep) - training_flops(
            plain, FORWARD, stage, keep
        )

    assert added("lora", keep) == 3 * 2 * TOKENS * 6 * 0.25 * size
    assert added("router", keep) == 3 * 2 * TOKENS * 6 * size


def test_costs_of_a_step_are_known_without_weights() -> None:
    bare = add_routers(tiny_base().to("meta"))
    keep = dict.fromkeys(routers(bare), 0.5)
    assert training_flops(bare, FORWARD, "lora", keep) == training_flops(
        tiny_routed(), FORWARD, "lora", keep
    )
