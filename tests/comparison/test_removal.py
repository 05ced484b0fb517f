"""Rows of static removals: budgets in FLOPs, stand-ins, and what a search costs."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runs import COMPARED, compared, write_documents
from skipgpt.baselines.registry import STATIC
from skipgpt.checkpoint.folder import read_info
from skipgpt.comparison import removal, static
from skipgpt.comparison.setup import ComparisonSetup, prepare
from skipgpt.config import Placement, RouterConfig
from skipgpt.cost import sparsities
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.fitting.stand_ins import fit_stand_ins, fit_to_removal
from skipgpt.model.state import use_rule
from skipgpt.model.surgery import routers, stand_ins
from skipgpt.removal.units import constant_routes, sites_of
from skipgpt.routing.decision import Forced
from tiny import byte_tokenizer, tiny_base

RANK = {"router.stand_in": 2}
WHOLE = 1 / 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("removal")
    tiny_base(initializer_range=0.2).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    write_documents(folder)
    return folder / "base"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The removals that are searched for from now on."""
    found: list[int] = []
    original = removal._search

    def search(setup: ComparisonSetup, method: Any, model: Any, removals: int) -> Any:
        found.append(removals)
        return original(setup, method, model, removals)

    monkeypatch.setattr(removal, "_search", search)
    return found


def _setup(base: Path) -> ComparisonSetup:
    data = [str(base.parent / "stories.jsonl")]
    return prepare(str(base), data, "default", dict(COMPARED), placement=Placement())


# Budgets in FLOPs.


@pytest.mark.parametrize("name", ["sleb", "llm-drop", "llm-drop+stand_in"])
def test_a_budget_of_flops_is_met_between_two_removals(
    name: str, base: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"budget": "flops", "settings": RANK}
    (row,) = compared(base, tmp_path / "out", name, sparsities=(0.22,), **options).rows
    assert row.sparsity["flops"] == pytest.approx(0.22)
    assert row.target == 0.22
    setup, kind = _setup(base), STATIC[name.removesuffix("+stand_in")]
    model = setup.routed(RouterConfig(stand_in=2 if "stand_in" in name else 0))
    order = kind.order(model, setup.search_text(), 3)
    shares = []
    for removals in range(4):
        gone = set(sites_of(order[:removals]))
        keep = {site: float(site not in gone) for site in routers(model)}
        found = sparsities(model, keep, setup.context, removed=True)
        shares.append(found["flops"])
    high = next(n for n, share in enumerate(shares) if share >= 0.22)
    assert shares[high] > 0.22 + 1e-6
    assert row.note.startswith(f"between {high - 1} and {high} {kind.units} removed")
    share = (0.22 - shares[high - 1]) / (shares[high] - shares[high - 1])
    removed = [len(unit) * n / 6 for unit in order[:1] for n in (high - 1, high)]
    assert row.sparsity["module"] == pytest.approx(removed[0] + share * (removed[1] - removed[0]))


def test_learned_routes_are_given_the_unit_of_the_budget(base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": "flops", "settings": RANK}
    found = compared(base, tmp_path / "out", "dense", "router", "mod", sparsities=(0.1,), **options)
    dense, router, mod, _ = found.rows
    run = json.loads((Path(str(router.checkpoint)) / "run.json").read_text())["config"]
    assert run["budget"] == "flops"
    assert found.facts["budget"] == "flops"
    assert dense.target == 0
    # Ranks skip a whole number of the 16 tokens in a row.
    assert mod.sparsity["flops"] == pytest.approx(0.1, abs=0.02)


# Stand-ins.


def test_fitted_stand_ins_run_where_modules_are_removed_and_are_counted(
    base: Path, tmp_path: Path
) -> None:
    found = compared(
        base, tmp_path / "out", "sleb", "sleb+stand_in", sparsities=(WHOLE,), settings=RANK
    )
    bare, row = found.rows
    setup = _setup(base)
    model = setup.routed(RouterConfig(stand_in=2))
    fit_stand_ins(model, subsample_rows(setup.blocks.train, 256))
    order = STATIC["sleb"].order(model, setup.search_text(), 1)
    constant_routes(model, order)
    fit_to_removal(model, setup.blocks.train, setup.main.fit_stage)
    with use_rule(model, Forced.without(sites_of(order))):
        measured = perplexity(model, setup.held_out())
    assert row.nll_per_token == measured.nll_per_token
    assert row.note == "1 layers removed, stand-ins of rank 2 fitted on 256 tokens"
    gone = set(sites_of(order))
    keep = {site: float(site not in gone) for site in routers(model)}
    expected = sparsities(model, keep, setup.context, removed=True)
    assert row.sparsity == expected
    assert row.sparsity["flops"] < bare.sparsity["flops"]
    assert row.nll_per_token != bare.nll_per_token


def test_healing_trains_stand_ins_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[bool] = []
    original = static.run_stage

    def watched(model: nn.Module, *args: Any) -> Any:
        before = {site: each.up.bias.detach().clone() for site, each in stand_ins(model).items()}
        healed = original(model, *args)
        after = {site: each.up.bias for site, each in stand_ins(healed).items()}
        moved.append(any(not torch.equal(after[site], bias) for site, bias in before.items()))
        return healed

    monkeypatch.setattr(static, "run_stage", watched)
    found = compared(
        base, tmp_path / "out", "sleb+stand_in+lora", sparsities=(WHOLE,), settings=RANK
    )
    assert moved == [True]
    (row,) = found.rows
    assert row.tokens_trained == 2 * 2 * 16  # steps, rows, tokens per row
    assert row.checkpoint is None


def test_another_rank_of_one_row_is_a_setting(base: Path, tmp_path: Path) -> None:
    names = ("sleb+stand_in:router.stand_in=1", "sleb+stand_in:router.stand_in=3")
    first, second = compared(base, tmp_path / "out", *names).rows
    assert first.nll_per_token != second.nll_per_token
    assert first.sparsity["flops"] > second.sparsity["flops"]


# What it costs to make a row.


def test_what_is_healed_and_what_is_not_share_a_search(
    base: Path, tmp_path: Path, searches: list[int]
) -> None:
    found = compared(base, tmp_path / "out", "sleb", "sleb+lora", sparsities=(0.5,))
    assert searches == [2]
    bare, healed = found.rows
    assert healed.seconds > bare.seconds > 0
    compared(base, tmp_path / "out", "sleb", sparsities=(0.4,))
    assert searches == [2]  # between the same two removals
    compared(base, tmp_path / "out", "sleb+stand_in", sparsities=(0.5,))
    assert searches == [2, 2]


def test_a_damaged_search_is_made_anew(base: Path, tmp_path: Path, searches: list[int]) -> None:
    (first,) = compared(base, tmp_path / "out", "sleb").rows
    (kept,) = (tmp_path / "out" / "searches").iterdir()
    kept.write_text("{")
    (row,) = (tmp_path / "out" / "cache").iterdir()
    row.unlink()
    (second,) = compared(base, tmp_path / "out", "sleb").rows
    assert searches == [1, 1]
    assert second.nll_per_token == first.nll_per_token


@pytest.mark.parametrize("name", ["sleb", "laco", "sleb+stand_in", "sleb+lora"])
def test_seconds_are_those_of_making_and_not_of_measuring(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()
    pruned = static._pruned

    def slowly(*args: Any) -> Any:
        for _ in range(10_000):
            next(clock)
        return pruned(*args)

    monkeypatch.setattr(static, "_pruned", slowly)
    for module in (static, removal):
        monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    (row,) = compared(base, tmp_path / "out", name).rows
    assert 0 < row.seconds < 10_000


def test_a_trained_row_says_on_how_many_tokens_and_leaves_measuring_out_of_its_seconds(
    base: Path, tmp_path: Path
) -> None:
    found = compared(base, tmp_path / "out", "router", "router+lora", "joint", "mod", "sleb")
    rows = {row.method: row for row in found.rows}
    step = 2 * 16
    for name, steps in (
        *(("router", 3), ("router+lora", 5), ("joint", 5), ("mod", 3), ("mod (causal)", 3)),
        ("sleb", 0),
    ):
        assert rows[name].tokens_trained == steps * step, name
    info = read_info(str(rows["router"].checkpoint))
    assert info.target_sparsity == 0.25
