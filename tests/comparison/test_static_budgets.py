"""How many removals a budget takes, and what each method can reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runs import COMPARED, write_documents
from skipgpt.comparison.method import parse_method
from skipgpt.comparison.removal import between, check_reach, find_removal, most_removals
from skipgpt.comparison.setup import ComparisonSetup, prepare
from skipgpt.config import Placement, RouterConfig
from skipgpt.cost import Savings, savings
from skipgpt.errors import ConfigError
from skipgpt.routing.decision import MODULES, Site
from tiny import byte_tokenizer, tiny_base

UNITS = [(Site(n, "attn"),) for n in range(4)]
SAVED = Savings(
    "flops", {site: share for (site,), share in zip(UNITS, (0.1, 0.3, 0.2, 0.4), strict=True)}
)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.0, (0, 0, 0.0)),
        (0.05, (0, 1, 0.5)),
        (0.1, (1, 1, 0.0)),
        (0.1 + 1e-12, (1, 1, 0.0)),  # a sum that is rounded is no further removal
        (0.25, (1, 2, 0.5)),
        (0.6, (3, 3, 0.0)),
        (0.9, (3, 4, 0.75)),
        (1.0, (4, 4, 0.0)),
    ],
)
def test_a_budget_lies_between_two_neighbours_of_the_order(
    target: float, expected: tuple[int, int, float]
) -> None:
    low, high, share = between(UNITS, SAVED, target)
    assert (low, high) == expected[:2]
    assert share == pytest.approx(expected[2])


@pytest.mark.parametrize(("target", "most"), [(0.0, 0), (0.1, 1), (0.2, 2), (0.5, 3), (0.9, 4)])
def test_no_order_of_removals_takes_more_than_the_most(target: float, most: int) -> None:
    assert most_removals(UNITS, SAVED, target) == most


def _setup(folder: Any, budget: Any, **changes: Any) -> ComparisonSetup:
    tiny_base(**changes).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    data = [str(write_documents(folder))]
    base = str(folder / "base")
    return prepare(base, data, "default", dict(COMPARED), budget, placement=Placement())


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ComparisonSetup]:
    units = ("modules", "flops")
    return {unit: _setup(tmp_path_factory.mktemp(unit), unit) for unit in units}


@pytest.mark.parametrize(
    ("unit", "name", "reached", "beyond"),
    [
        ("modules", "llm-drop-attn", 0.5, 0.51),
        ("modules", "laco", 0.66, 0.67),
        ("modules", "mod", 0.33, 0.34),
        ("modules", "llm-drop-attn+stand_in:router.stand_in=2", 0.5, 0.51),
        # Of a tiny base the head is a third of the FLOPs, and attention less than half of the rest.
        ("flops", "llm-drop-attn", 0.2, 0.5),
        ("flops", "sleb", 0.6, 0.95),
        ("flops", "router", 0.3, 0.95),
        ("flops", "mod", 0.1, 0.34),
    ],
)
def test_more_than_a_method_can_skip_is_refused(
    unit: str, name: str, reached: float, beyond: float, jobs: dict[str, ComparisonSetup]
) -> None:
    method = parse_method(name)
    check_reach(jobs[unit], [method], [reached])
    word = {"modules": "modules", "flops": "FLOPs"}[unit]
    with pytest.raises(ConfigError, match=f"got a budget of {beyond:g} of the {word}; expected at"):
        check_reach(jobs[unit], [parse_method("dense"), method], [0.1, beyond])


@pytest.mark.parametrize("name", ["llm-drop+stand_in", "router"])
def test_modules_that_cost_less_than_their_stand_ins_stay(name: str, tmp_path: Path) -> None:
    # D 32, queries and output 32 x 32, keys and values 32 x 16, heads of 48, 257 words: an MLP of
    # 3 x 32 x 8 weights has fewer than a stand-in of 2 x 32 x 20, and attention has more.
    setup = _setup(tmp_path, "flops", intermediate_size=8)
    method = parse_method(f"{name}:router.stand_in=20")
    model = setup.routed(RouterConfig(stand_in=20))
    saved = savings(model, "flops", setup.context, removed=method.stand_in)
    attn, mlp = ([v for s, v in saved.by_site.items() if s.module == m] for m in MODULES)
    assert min(attn) > 0 > max(mlp)
    check_reach(setup, [method], [sum(attn) - saved.overhead - 1e-6])
    with pytest.raises(ConfigError, match="all that it can skip"):
        check_reach(setup, [method], [sum(attn) - saved.overhead + 1e-6])
    if method.stand_in:
        target = 0.9 * sum(attn)
        removal = find_removal(setup, method, setup.config(method, target, 0), tmp_path)
        assert [site.module for unit in removal.order for site in unit] == ["attn"] * 3
        assert (removal.low, removal.high) == (2, 3)
        met = sum(attn[:2]) + removal.share * attn[2]  # layers are alike
        assert met == pytest.approx(target)


def test_stand_ins_of_rank_none_are_refused(jobs: dict[str, ComparisonSetup]) -> None:
    method = parse_method("sleb+stand_in:router.stand_in=0")
    with pytest.raises(ConfigError, match=r"--set router\.stand_in=0\.2"):
        jobs["modules"].config(method, 0.25, 0)
