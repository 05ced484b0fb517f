"""A routed model with stand-ins: what it has, what it adds, how it is saved and what it costs."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import skipgpt
from cases import CLOSE, LEFT_PADDED, ONE_ROW, SITES, base, every_layout, routed
from runs import logits, rows
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.checkpoint.tensors import load_routers
from skipgpt.config import RouterConfig
from skipgpt.cost import layer_costs, sparsities
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.model.base import load_base
from skipgpt.model.state import execution, record_routing, routing_state, use_rule
from skipgpt.model.surgery import (
    add_routers,
    remove_routers,
    routed_layers,
    router_state_dict,
    stand_ins,
    train_only,
)
from skipgpt.routing.decision import Forced, Site
from tiny import tiny_base

RANK = 3


def test_every_site_has_a_stand_in_of_the_rank_asked_for() -> None:
    found = stand_ins(routed(stand_in=RANK))
    assert sorted(found) == sorted(SITES)
    for stand_in in found.values():
        shapes = {name: tuple(p.shape) for name, p in stand_in.named_parameters()}
        assert shapes == {"down.weight": (RANK, 32), "up.weight": (32, RANK), "up.bias": (32,)}


def test_a_share_of_the_width_is_resolved_and_bounded() -> None:
    model = routed(stand_in=0.2)
    assert routing_state(model).config.stand_in == 6  # of 32
    assert {each.down.weight.shape for each in stand_ins(model).values()} == {(6, 32)}
    assert RouterConfig(stand_in=0.2).resolved(4096).stand_in == 128
    assert RouterConfig(stand_in=0.2).resolved(576).stand_in == 112
    assert RouterConfig(stand_in=0.01).resolved(32).stand_in == 1


def test_without_a_rank_there_are_none() -> None:
    assert stand_ins(routed()) == {}
    assert not any("stand_in" in name for name in routed().state_dict())


@every_layout
@torch.no_grad()
def test_new_stand_ins_change_nothing(family: str) -> None:
    model = routed(family)
    expected = model(**LEFT_PADDED.given).logits
    fresh = add_routers(base(family), RouterConfig(stand_in=RANK)).eval()
    load_routers(fresh, router_state_dict(fresh) | router_state_dict(model), "a test")
    routing_state(fresh).execution = routing_state(model).execution
    assert torch.equal(fresh(**LEFT_PADDED.given).logits, expected)


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
@torch.no_grad()
def test_a_layer_that_is_skipped_whole_adds_what_its_stand_ins_say(family: str, kind: str) -> None:
    model = routed(family, stand_in=RANK)
    sites = stand_ins(model)
    with use_rule(model, Forced(default=False)), execution(model, kind):
        states = model(**ONE_ROW.given, output_hidden_states=True, use_cache=False).hidden_states
    for layer, (entering, leaving) in enumerate(pairwise(states[:-1])):
        attn, mlp = (sites[Site(layer, module)] for module in ("attn", "mlp"))
        stream = entering + attn(entering)
        read = entering if family == "gpt_neox" else stream  # parallel
        torch.testing.assert_close(leaving, stream + mlp(read), **CLOSE)


def test_the_gated_gate_and_its_stand_in_share_the_token() -> None:
    # The gradient to a gate is what running the module adds less what its stand-in adds.
    model, site = routed(stand_in=RANK), Site(1, "mlp")
    layer = routed_layers(model)[1]
    gate = torch.full((1, ONE_ROW.tokens), 0.25, requires_grad=True)

    def rule(margin: torch.Tensor, at: Site) -> object:
        made = Forced()(margin, at)
        return made if at != site else type(made)(made.keep, gate, margin)

    seen: dict[str, torch.Tensor] = {}
    layer.mlp.register_forward_hook(lambda _, __, output: seen.update(module=output))
    layer.mlp_stand_in.register_forward_hook(lambda _, args, output: seen.update(stand_in=output))
    layer.register_forward_hook(lambda _, __, output: seen.update(stream=output))
    with use_rule(model, rule), execution(model, "gated"):
        model(**ONE_ROW.given, use_cache=False)
    (gradient,) = torch.autograd.grad(seen["stream"].sum(), gate)
    expected = (seen["module"] - seen["stand_in"]).sum(-1)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kinds", "count"),
    [(("router",), 6 * 2), (("stand_in",), 6 * 3), (("router", "stand_in"), 6 * 5), (("lora",), 0)],
    ids=str,
)
def test_train_only_tells_stand_ins_from_routers(kinds: tuple[str, ...], count: int) -> None:
    model = routed(stand_in=RANK)
    assert len(train_only(model, *kinds)) == count
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name in dict(model.named_parameters())
        if any(f"_{kind}." in name for kind in kinds)
    }


def test_removing_routers_removes_stand_ins() -> None:
    model = routed(stand_in=RANK)
    remove_routers(model)
    assert model.state_dict().keys() == base().state_dict().keys()
    with torch.no_grad():
        assert torch.equal(model(**ONE_ROW.given).logits, base()(**ONE_ROW.given).logits)
    add_routers(model)
    assert stand_ins(model) == {}


def test_a_copy_has_stand_ins_of_its_own() -> None:
    model = routed(stand_in=RANK)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.model.layers[0].attn_stand_in.up.weight)
    assert model.model.layers[0].attn_stand_in.up.weight.any()


def test_stand_ins_are_float32_on_a_base_of_half_the_width() -> None:
    model = add_routers(tiny_base().bfloat16(), RouterConfig(stand_in=RANK))
    assert {p.dtype for each in stand_ins(model).values() for p in each.parameters()} == {
        torch.float32
    }
    with torch.no_grad():
        assert model(**ONE_ROW.given).logits.dtype == torch.bfloat16


def test_a_rank_is_whole() -> None:
    assert RouterConfig(stand_in=16.0).stand_in == 16
    with pytest.raises(ConfigError, match=r"got 16\.5; expected a whole number"):
        RouterConfig(stand_in=16.5)


@pytest.mark.parametrize("rank", [33, 500])
def test_a_rank_above_the_width_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"got {rank}; expected at most 32, the width"):
        add_routers(tiny_base(), RouterConfig(stand_in=rank))


# Saved and loaded.


@pytest.fixture
def saved(base_folder: Path, tmp_path: Path) -> tuple[nn.Module, Path]:
    """A calibrated model whose stand-ins matter, and its checkpoint."""
    model, _ = load_base(str(base_folder))
    torch.manual_seed(3)
    add_routers(model, RouterConfig(normalize=True, stand_in=RANK, decides="layer"))
    for stand_in in stand_ins(model).values():
        for parameter in stand_in.parameters():
            nn.init.normal_(parameter, std=0.2)
    calibrate(model.eval(), rows(8), target=0.5)
    save(model, tmp_path / "out", describe(model, str(base_folder), target_sparsity=0.5))
    return model, tmp_path / "out"


def test_a_checkpoint_holds_stand_ins_beside_routers(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    tensors = load_file(folder / "routers.safetensors")
    assert tensors["layers.2.mlp_stand_in.down.weight"].shape == (RANK, 32)
    assert len(tensors) == len(SITES) * (2 + 3)
    loaded, _ = load(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert stand_ins(loaded).keys() == set(SITES)


def test_a_checkpoint_without_one_of_its_stand_ins_is_refused(
    saved: tuple[nn.Module, Path],
) -> None:
    model, folder = saved
    tensors = load_file(folder / "routers.safetensors")
    del tensors["layers.0.attn_stand_in.up.bias"]
    with pytest.raises(CheckpointError, match=r"missing layers\.0\.attn_stand_in\.up\.bias"):
        load_routers(model, tensors, folder)


def test_a_merged_export_keeps_stand_ins(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, folder = saved
    skipgpt.export_merged(folder, tmp_path / "merged")
    skipgpt.register()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits(merged), logits(model))
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    for site, stand_in in stand_ins(half).items():
        for name, parameter in stand_in.named_parameters():
            assert torch.equal(parameter, stand_ins(model)[site].get_parameter(name))
    merged.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(logits(again), logits(model))


def test_generating_with_a_cache_gives_the_tokens_of_the_definition() -> None:
    model = routed(stand_in=RANK)
    more = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    made = model.generate(**LEFT_PADDED.prompt, **more)
    with execution(model, "gated"):
        assert torch.equal(model.generate(**LEFT_PADDED.prompt, use_cache=False, **more), made)


# What it costs.


def test_a_stand_in_costs_its_parameters_for_each_token_that_skips() -> None:
    model = routed(stand_in=RANK)
    each = 2 * 32 * RANK + 32
    attn, mlp = 0.75, 0.5
    keep = {site: attn if site.module == "attn" else mlp for site in SITES}
    layers = [layer_costs(layer) for layer in routed_layers(model)]
    head, routing = model.lm_head.weight.numel(), 6 * (2 * 32 + 2)
    dense = head + sum(c.kv + c.qo + c.mlp for c in layers)
    run = head + routing + sum(c.kv + attn * c.qo + mlp * c.mlp for c in layers)
    run += 3 * ((1 - attn) + (1 - mlp)) * each
    core = 3 * 4 * 32 * 8.5
    measured = sparsities(model, keep, context=8.5)
    assert measured["params"] == pytest.approx(1 - run / dense)
    assert measured["flops"] == pytest.approx(1 - (2 * run + attn * core) / (2 * dense + core))
    assert measured["module"] == 0.375


def test_where_everything_is_kept_stand_ins_cost_nothing() -> None:
    bare, with_them = (
        sparsities(routed(stand_in=rank), dict.fromkeys(SITES, 1.0), context=8.5)
        for rank in (0, RANK)
    )
    assert with_them == bare


@torch.no_grad()
def test_the_counted_flops_of_stand_ins_are_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def executed(model: nn.Module) -> int:
        with use_rule(model, Forced.without(SITES)), FlopCounterMode(display=False) as counter:
            model(**ONE_ROW.given, use_cache=False)
        return counter.get_total_flops()

    more = executed(routed(stand_in=RANK)) - executed(routed())
    assert more == ONE_ROW.tokens * len(SITES) * 2 * (2 * 32 * RANK)  # products, no bias


def test_stand_ins_run_for_skipped_tokens_only() -> None:
    model, seen = routed(stand_in=RANK), dict[Site, int]()
    for site, stand_in in stand_ins(model).items():
        stand_in.register_forward_hook(
            lambda _, args, __, site=site: seen.update({site: len(args[0])})
        )
    with record_routing(model) as trace, torch.no_grad():
        model(**ONE_ROW.given, use_cache=False)
    kept, tokens = trace.counts().kept(), trace.counts().tokens
    assert {site: tokens - count for site, count in kept.items() if count < tokens} == seen
