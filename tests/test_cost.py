"""What is skipped, in decisions, parameters and FLOPs, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cases import ONE_ROW, SITES, layouts, routed
from skipgpt.config import RouterConfig
from skipgpt.cost import ModuleCosts, flops_per_token, layer_costs, sparsities
from skipgpt.model.state import use_rule
from skipgpt.model.surgery import add_routers, routed_layers, routers
from skipgpt.routing.decision import DecisionRule, Forced, Site
from skipgpt.training.stages import with_lora
from tiny import tiny_base, tiny_routed

# The tiny Llama: D 32, 4 heads of 8, 2 key-value heads, MLP 48, 3 layers, 257 tokens.
KV = 2 * 32 * 16
QO = 2 * 32 * 32
MLP = 3 * 32 * 48
CORE = 4 * 32
ROUTERS = 6 * (32 * 2 + 2)
HEAD = 257 * 32
DENSE = 3 * (KV + QO + MLP) + HEAD
CONTEXT = 8.5


def keep(attn: float, mlp: float) -> dict[Site, float]:
    return {
        Site(n, kind): share for n in range(3) for kind, share in (("attn", attn), ("mlp", mlp))
    }


def flops(attn: float, mlp: float, routers: int = ROUTERS) -> float:
    """Per token, by hand."""
    parameters = 3 * (KV + attn * QO + mlp * MLP) + routers + HEAD
    return 2 * parameters + 3 * attn * 4 * 32 * CONTEXT


DENSE_FLOPS = flops(1, 1, routers=0)


def test_a_layers_counts() -> None:
    layer = routed_layers(tiny_routed())[0]
    assert layer_costs(layer) == ModuleCosts(kv=KV, qo=QO, mlp=MLP, core_width=32, cached=32)


def test_the_flops_of_a_token_are_those_of_the_base_model() -> None:
    model = tiny_routed()
    assert flops_per_token(model, CONTEXT) == DENSE_FLOPS
    stood_in = tiny_routed(router=RouterConfig(stand_in=4))
    assert flops_per_token(stood_in, CONTEXT) == flops_per_token(model, CONTEXT)


def costs(family: str) -> list[ModuleCosts]:
    return [layer_costs(layer) for layer in routed_layers(routed(family))]


def test_of_a_fused_projection_the_rows_that_make_queries_are_skipped() -> None:
    # Phi-3: 32 outputs for queries, 16 each for keys and values, no bias.
    assert costs("phi3")[0] == ModuleCosts(
        kv=KV, qo=QO, mlp=MLP, core_width=32, cached=32, window=5
    )
    # GPT-2: three times 32 outputs with bias, transposed; an MLP of two layers with biases.
    linear = 32 * 32 + 32
    assert costs("gpt2")[0] == ModuleCosts(
        kv=2 * linear, qo=2 * linear, mlp=2 * 32 * 48 + 48 + 32, core_width=32, cached=64
    )


def test_a_fused_projection_whose_rows_are_mixed_runs_whole() -> None:
    # GPT-NeoX: heads of queries, keys and values take turns.
    assert costs("gpt_neox")[0] == ModuleCosts(
        kv=32 * 96 + 96, qo=32 * 32 + 32, mlp=2 * 32 * 48 + 48 + 32, core_width=32, cached=64
    )


def test_of_experts_those_that_a_token_runs_are_counted() -> None:
    # Mixtral: 2 of 4 experts, and what chooses them.
    assert costs("mixtral")[0] == ModuleCosts(
        kv=KV, qo=QO, mlp=2 * MLP + 4 * 32, core_width=32, cached=32, window=5
    )
    # Qwen2-MoE: 2 of 4 experts of 24, a shared one of 40 with its gate; layer 1 is dense.
    experts = 2 * 3 * 32 * 24 + 3 * 32 * 40 + 32 + 4 * 32
    assert [each.mlp for each in costs("qwen2_moe/mixed")] == [experts, MLP, experts]


def test_latent_attention_counts_what_makes_keys_and_values_from_the_latent() -> None:
    # DeepSeek-V3: 4 heads; queries of 8 + 4 through 12; keys of 8 + 4 and values of 6 through 16.
    first = costs("deepseek_v3")[0]
    queries = (32 * 12 + 12) + 12 * 4 * (8 + 4)
    assert first.qo == queries + 4 * 6 * 32 + 32
    norms = 12 + 16
    assert first.kv == (32 * (16 + 4) + 16 + 4) + 16 * 4 * (8 + 6) + norms
    # A score takes 12 products and a value 6, 2 FLOPs each: half of their sum at 4 FLOPs a unit.
    assert first.core_width == 4 * (12 + 6) / 2
    plain = costs("deepseek_v3/no-q-lora")[0]
    assert plain.qo == 32 * 4 * (8 + 4) + 4 * 6 * 32


def executed_flops(model: nn.Module, rule: DecisionRule) -> int:
    """What torch counts in one forward of one row: matrix products, no bias and no norm."""
    with use_rule(model, rule), FlopCounterMode(display=False) as counter:
        model(**ONE_ROW.given, use_cache=False)
    return counter.get_total_flops()


# Experts and fused projections are counted by what few families have.
@layouts(more=("qwen2_moe/mixed", "falcon", "gpt_bigcode"))
@torch.no_grad()
def test_the_counts_are_what_torch_counts_and_only_kept_tokens_cost(family: str) -> None:
    model = routed(family, "eager")
    model.config._experts_implementation = "eager"  # torch does not count the grouped product
    tokens, kept = ONE_ROW.tokens, 6
    some = torch.arange(tokens)[None] < kept
    layers = routed_layers(model)
    each = [layer_costs(layer) for layer in layers]
    expected = {
        "attn": sum(2 * tokens * c.qo + 4 * c.core_width * tokens**2 for c in each),
        "mlp": sum(2 * tokens * c.mlp for c in each),
    }
    dense = executed_flops(model, Forced())  # routers run, as where something is skipped
    for module, counted in expected.items():
        sites = [site for site in SITES if site.module == module]
        saved = dense - executed_flops(model, Forced.without(sites))
        if module == "attn" and family.startswith("deepseek_v3"):
            # Keys and values are made out of the cached latents, for all tokens or for none.
            saved -= sum(2 * tokens * layer.self_attn.kv_b_proj.weight.numel() for layer in layers)
        # Biases are parameters and no product: one in 32 of the widest layer.
        assert saved == pytest.approx(counted, rel=0.03)
        part = dense - executed_flops(model, Forced(dict.fromkeys(sites, some)))
        assert part * tokens == saved * (tokens - kept)


def test_keeping_all_skips_nothing_and_costs_the_routers() -> None:
    result = sparsities(tiny_routed(), keep(1, 1), CONTEXT)
    assert (result["module"], result["attn"], result["mlp"]) == (0, 0, 0)
    assert result["params"] == pytest.approx(-ROUTERS / DENSE)
    assert result["flops"] == pytest.approx(-2 * ROUTERS / DENSE_FLOPS)


def test_a_static_removal_has_no_routers() -> None:
    result = sparsities(tiny_routed(), keep(1, 1), CONTEXT, removed=True)
    assert result == {"module": 0, "attn": 0, "mlp": 0, "params": 0, "flops": 0}


def test_skipping_all_still_runs_keys_values_routers_and_head() -> None:
    result = sparsities(tiny_routed(), keep(0, 0), CONTEXT)
    assert (result["module"], result["attn"], result["mlp"]) == (1, 1, 1)
    assert result["params"] == pytest.approx((3 * (QO + MLP) - ROUTERS) / DENSE)
    assert result["params"] == pytest.approx((19_968 - 396) / (3 * 7_680 + 8_224))
    assert result["flops"] == pytest.approx(1 - flops(0, 0) / DENSE_FLOPS)
    assert result["flops"] < 1


def test_skipping_attention_alone() -> None:
    result = sparsities(tiny_routed(), keep(0, 1), CONTEXT)
    assert (result["module"], result["attn"], result["mlp"]) == (0.5, 1, 0)
    assert result["params"] == pytest.approx((3 * QO - ROUTERS) / DENSE)
    assert result["flops"] == pytest.approx(1 - flops(0, 1) / DENSE_FLOPS)
    saved = 3 * (2 * QO + CORE * CONTEXT) - 2 * ROUTERS
    assert result["flops"] == pytest.approx(saved / (2 * DENSE + 3 * CORE * CONTEXT))


def test_skipping_mlps_alone_saves_no_attention_core() -> None:
    result = sparsities(tiny_routed(), keep(1, 0), CONTEXT)
    assert (result["attn"], result["mlp"]) == (0, 1)
    assert result["params"] == pytest.approx((3 * MLP - ROUTERS) / DENSE)
    saved = 2 * (3 * MLP - ROUTERS)
    assert result["flops"] == pytest.approx(saved / (2 * DENSE + 3 * CORE * CONTEXT))


def test_shares_lie_between_the_ends() -> None:
    result = sparsities(tiny_routed(), keep(0.75, 0.5), CONTEXT)
    assert result["module"] == pytest.approx(0.375)
    assert result["params"] == pytest.approx((3 * (0.25 * QO + 0.5 * MLP) - ROUTERS) / DENSE)
    assert result["flops"] == pytest.approx(1 - flops(0.75, 0.5) / DENSE_FLOPS)


def test_a_longer_context_makes_skipped_attention_worth_more() -> None:
    model = tiny_routed()
    short, long = (sparsities(model, keep(0, 1), context)["flops"] for context in (8, 8000))
    assert long > short


def test_a_tied_head_counts_once() -> None:
    tied = tiny_routed(tie_word_embeddings=True)
    assert sparsities(tied, keep(0, 0), CONTEXT) == sparsities(tiny_routed(), keep(0, 0), CONTEXT)


def test_lora_changes_no_count() -> None:
    from runs import tiny_config

    plain = sparsities(tiny_routed(), keep(0.5, 0.5), CONTEXT)
    healed = with_lora(tiny_routed(), tiny_config().lora_stage)
    assert sparsities(healed, keep(0.5, 0.5), CONTEXT) == plain


def test_two_layer_routers_count_in_full() -> None:
    model = add_routers(tiny_base(), RouterConfig(head="mlp"))
    size = sum(p.numel() for router in routers(model).values() for p in router.parameters())
    assert size == 6 * (32 * 8 + 8 + 8 * 2 + 2)
    result = sparsities(model, keep(0, 0), CONTEXT)
    assert result["params"] == pytest.approx((3 * (QO + MLP) - size) / DENSE)
