"""A model rebuilt without some of its modules computes what it computed without them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zoo
from cases import CLOSE, ONE_ROW, SITES, families, routed
from runs import logits
from skipgpt.errors import (
    UnsupportedModelError,
)
from skipgpt.export.pairing import Pair, pair_rates, pair_up
from skipgpt.export.rebuild import module_parameters, moves_whole_layers, smaller_model
from skipgpt.model.state import use_rule
from skipgpt.model.surgery import add_routers, routed_layers
from skipgpt.routing.decision import Forced, Site
from static_exports import A1, A2, M0, M1, plain
from tiny import LONG, examples

ODD = (
    "gpt_neox/sequential",
    "falcon/sequential",
    "stablelm",
    "smollm3",
    "granite",
    "glm4",
    "qwen2_moe/mixed",
    "mellum",
    "gpt2/upcast",
)


BY_PLACE = "gpt2"  # in the zoo with attention that is scaled by its place


SEQUENTIAL = ("llama", "qwen2", "gemma3_text", "olmo2", "phi3", "bloom", "mixtral", "gpt_oss")


PARALLEL = ("gpt_neox", "cohere2", "falcon/new", "phi", "stablelm/parallel")


SHORT = (*SEQUENTIAL, *PARALLEL, *ODD, "deepseek_v3")


def sites_in(pairs: list[Pair]) -> list[Site]:
    """The modules that the new layers hold, in the order the data moves."""
    return [site for attn, mlp in pairs for site in (Site(attn, "attn"), Site(mlp, "mlp"))]


def remade(model: nn.Module, rare: list[Site], folder: Path) -> tuple[Any, set[Site]]:
    """The smaller model without as many of these sites as can go, and those that are gone."""
    sites = [Site(layer.index, kind) for layer in routed_layers(model) for kind in ("attn", "mlp")]
    sizes, rates = module_parameters(model), {site: float(site not in rare) for site in sites}
    going = pair_rates(sites, sizes, rates, whole_layers=moves_whole_layers(model))
    pairs = pair_up(sites, [pair for pair, rate in going.items() if rate == 0], sizes, rates)
    return plain(model, pairs, folder), set(sites) - set(sites_in(pairs))


@families([n for n in zoo.ZOO if n != BY_PLACE] if LONG else SHORT)
def test_modules_of_different_layers_make_one_layer(family: str, tmp_path: Path) -> None:
    model = routed(family)
    static, gone = remade(model, [M0, A1, A2], tmp_path)
    assert gone == (set() if moves_whole_layers(model) else {M0, A1})
    with use_rule(model, Forced.without(list(gone))):
        expected = logits(model, ONE_ROW.ids)
    torch.testing.assert_close(logits(static, ONE_ROW.ids), expected, **CLOSE)


@families([n for n in zoo.ZOO if n != BY_PLACE] if LONG else SHORT)
def test_whole_layers_go_in_every_family(family: str, tmp_path: Path) -> None:
    model = routed(family)
    static, gone = remade(model, [A1, M1], tmp_path)
    assert gone == {A1, M1}
    with use_rule(model, Forced.without([A1, M1])):
        expected = logits(model, ONE_ROW.ids)
    torch.testing.assert_close(logits(static, ONE_ROW.ids), expected, **CLOSE)
    assert static.config.num_hidden_layers == 2


@families(PARALLEL)
def test_parallel_families_lose_whole_layers_only(family: str) -> None:
    assert moves_whole_layers(routed(family))


@families(SEQUENTIAL)
def test_sequential_families_lose_single_modules(family: str) -> None:
    assert not moves_whole_layers(routed(family))


@given(st.sets(st.sampled_from([Site(n, k) for n in range(4) for k in ("attn", "mlp")])))
@examples(8, 60)
def test_any_removal_is_exact(rare: set[Site]) -> None:
    model = routed_of_four_layers()
    with tempfile.TemporaryDirectory() as folder:
        static, gone = remade(model, sorted(rare), Path(folder))
    assert gone <= rare
    with use_rule(model, Forced.without(list(gone))):
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)
    assert static.num_parameters() + sum(
        module_parameters(model)[site] for site in gone
    ) == base_parameters(model)


def routed_of_four_layers() -> Any:
    kinds = ["sliding_attention", "full_attention"] * 2
    model = zoo.build("gemma3_text", num_hidden_layers=4, layer_types=kinds, initializer_range=0.2)
    return add_routers(model).eval()


def base_parameters(model: nn.Module) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if "_router" not in n)


def ways_to_go(sites: list[Site], going: set[tuple[Site, Site]]) -> list[list[Site]]:
    """Every list of sites that is left when pairs of neighbours go."""
    if len(sites) < 2:
        return [sites]
    stays = [[sites[0], *rest] for rest in ways_to_go(sites[1:], going)]
    return stays + (ways_to_go(sites[2:], going) if (sites[0], sites[1]) in going else [])


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0]), min_size=6, max_size=6),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.booleans(),
)
def test_what_stays_is_the_least_without_pairs_that_tokens_hardly_run(
    kept: list[float], sizes: list[int], whole: bool
) -> None:
    parameters, rates = (dict(zip(SITES, each, strict=True)) for each in (sizes, kept))
    pairs = pair_rates(SITES, parameters, rates, whole_layers=whole)
    assert len(pairs) == (3 if whole else 5)
    for (a, b), rate in pairs.items():
        run = parameters[a] * rates[a] + parameters[b] * rates[b]
        assert rate == pytest.approx(run / (parameters[a] + parameters[b]))
    going = {pair for pair, rate in pairs.items() if rate < 0.25}
    stays = sites_in(pair_up(SITES, going, parameters, rates))
    choices = [left for left in ways_to_go(SITES, going) if left]
    assert stays in choices
    assert sum(parameters[s] for s in stays) == min(
        sum(parameters[s] for s in left) for left in choices
    )


def test_of_equal_choices_the_module_that_more_tokens_keep_stays() -> None:
    ones = dict.fromkeys(SITES, 1)
    rates = dict.fromkeys(SITES, 1.0) | {A1: 0.01, M0: 0.02, A2: 0.04}
    assert pair_up(SITES, [(M0, A1), (A1, M1)], ones, rates) == [(0, 1), (2, 2)]
    every = pair_rates(SITES, ones, ones)
    assert pair_up(SITES, every, ones, dict.fromkeys(SITES, 0.0) | {A1: 0.03, A2: 0.02})[0][0] == 1


@pytest.mark.parametrize(
    ("family", "changes", "pairs", "expected"),
    [
        (
            "deepseek_v3",
            {"first_k_dense_replace": 2},
            [(0, 1), (2, 2)],
            {"first_k_dense_replace": 1},
        ),
        (
            "deepseek_v3",
            {"first_k_dense_replace": 1},
            [(1, 1), (2, 2)],
            {"first_k_dense_replace": 0},
        ),
        (
            "qwen2_moe",
            {"decoder_sparse_step": 2},
            [(0, 1), (2, 2)],
            {"decoder_sparse_step": 1, "mlp_only_layers": [1]},
        ),
        (
            "mellum",
            {},
            [(0, 0), (1, 2)],
            {
                "layer_types": ["sliding_attention", "full_attention"],
                "mlp_layer_types": ["dense", "sparse"],
            },
        ),
        ("smollm3", {}, [(1, 2)], {"no_rope_layers": [0], "layer_types": ["full_attention"]}),
        ("gpt2/upcast", {}, [(0, 1), (2, 2)], {"n_layer": 2}),
    ],
)
def test_what_the_config_says_of_a_module_moves_with_it(
    family: str,
    changes: dict[str, Any],
    pairs: list[Pair],
    expected: dict[str, Any],
    tmp_path: Path,
) -> None:
    model = add_routers(zoo.build(family, initializer_range=0.2, **changes)).eval()
    static = plain(model, pairs, tmp_path)
    assert {name: getattr(static.config, name) for name in expected} == expected
    with use_rule(model, Forced.without([s for s in SITES if s not in sites_in(pairs)])):
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)


def test_layers_that_depend_on_their_place_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="scale_attn_by_inverse_layer_idx = true"):
        smaller_model(routed(BY_PLACE), [(0, 0), (2, 2)])


def test_a_list_by_layer_of_which_nothing_is_known_is_refused() -> None:
    model = routed()
    model.config.layer_scales = [1.0, 2.0, 3.0]
    with pytest.raises(UnsupportedModelError, match="layer_scales, a list with an entry for each"):
        smaller_model(model, [(0, 0), (2, 2)])
