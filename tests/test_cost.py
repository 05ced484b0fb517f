"""What is skipped, in decisions, parameters and FLOPs, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from conftest import tiny_base, tiny_routed
from skipgpt.config import RouterConfig
from skipgpt.cost import ModuleCosts, layer_costs, sparsities
from skipgpt.model.surgery import add_routers, routed_layers, routers
from skipgpt.routing.decision import Site
from skipgpt.training.stages import with_lora

# The tiny Llama: D 32, 4 heads of 8, 2 key-value heads, MLP 48, 3 layers, 257 tokens.
KV = 2 * 32 * 16
QO = 2 * 32 * 32
MLP = 3 * 32 * 48
CORE = 4 * 32
ROUTERS = 6 * (32 * 2 + 2)
HEAD = 257 * 32
DENSE = 3 * (KV + QO + MLP) + ROUTERS + HEAD
CONTEXT = 8.5


def keep(attn: float, mlp: float) -> dict[Site, float]:
    return {
        Site(n, kind): share for n in range(3) for kind, share in (("attn", attn), ("mlp", mlp))
    }


def flops(attn: float, mlp: float) -> float:
    """Per token, by hand."""
    parameters = 3 * (KV + attn * QO + mlp * MLP) + ROUTERS + HEAD
    return 2 * parameters + 3 * attn * 4 * 32 * CONTEXT


def test_a_layers_counts() -> None:
    layer = routed_layers(tiny_routed())[0]
    assert layer_costs(layer) == ModuleCosts(kv=KV, qo=QO, mlp=MLP, core_width=32)


def test_keeping_all_skips_nothing_in_any_sense() -> None:
    result = sparsities(tiny_routed(), keep(1, 1), CONTEXT)
    assert result == {"module": 0, "attn": 0, "mlp": 0, "params": 0, "flops": 0}


def test_skipping_all_still_runs_keys_values_routers_and_head() -> None:
    result = sparsities(tiny_routed(), keep(0, 0), CONTEXT)
    assert (result["module"], result["attn"], result["mlp"]) == (1, 1, 1)
    assert result["params"] == pytest.approx(3 * (QO + MLP) / DENSE)
    assert result["params"] == pytest.approx(19_968 / (3 * 7_680 + 396 + 8_224))
    assert result["flops"] == pytest.approx(1 - flops(0, 0) / flops(1, 1))
    assert result["flops"] < 1


def test_skipping_attention_alone() -> None:
    result = sparsities(tiny_routed(), keep(0, 1), CONTEXT)
    assert (result["module"], result["attn"], result["mlp"]) == (0.5, 1, 0)
    assert result["params"] == pytest.approx(3 * QO / DENSE)
    assert result["flops"] == pytest.approx(1 - flops(0, 1) / flops(1, 1))
    saved = 3 * (2 * QO + CORE * CONTEXT)
    assert result["flops"] == pytest.approx(saved / (2 * DENSE + 3 * CORE * CONTEXT))


def test_skipping_mlps_alone_saves_no_attention_core() -> None:
    result = sparsities(tiny_routed(), keep(1, 0), CONTEXT)
    assert (result["attn"], result["mlp"]) == (0, 1)
    assert result["params"] == pytest.approx(3 * MLP / DENSE)
    assert result["flops"] == pytest.approx(3 * 2 * MLP / (2 * DENSE + 3 * CORE * CONTEXT))


def test_shares_lie_between_the_ends() -> None:
    result = sparsities(tiny_routed(), keep(0.75, 0.5), CONTEXT)
    assert result["module"] == pytest.approx(0.375)
    assert result["params"] == pytest.approx(3 * (0.25 * QO + 0.5 * MLP) / DENSE)
    assert result["flops"] == pytest.approx(1 - flops(0.75, 0.5) / flops(1, 1))


def test_a_longer_context_makes_skipped_attention_worth_more() -> None:
    model = tiny_routed()
    short, long = (sparsities(model, keep(0, 1), context)["flops"] for context in (8, 8000))
    assert long > short


def test_a_tied_head_counts_once_and_a_skipped_head_less() -> None:
    tied = tiny_routed(tie_word_embeddings=True)
    assert sparsities(tied, keep(0, 0), CONTEXT) == sparsities(tiny_routed(), keep(0, 0), CONTEXT)
    few = sparsities(tied, keep(0, 0), CONTEXT, head_tokens=0.0)
    assert few["params"] == pytest.approx(3 * (QO + MLP) / (DENSE - HEAD))


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
    assert result["params"] == pytest.approx(3 * (QO + MLP) / (DENSE - ROUTERS + size))
