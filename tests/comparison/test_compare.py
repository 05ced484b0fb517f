"""Methods side by side: what is measured, and on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import reference
from comparisons import WHOLE, by_method, setup_of
from runs import compared
from skipgpt.baselines.registry import STATIC
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.comparison import static
from skipgpt.comparison.result import Comparison, Row
from skipgpt.config import TrainConfig
from skipgpt.config.settings import from_dict
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.model.state import use_rule
from skipgpt.removal.units import sites_of
from skipgpt.routing.decision import Forced
from skipgpt.training.run import train

SENSES = {"module", "attn", "mlp", "params", "flops"}


def test_rows_come_in_the_order_of_methods_with_other_evaluations_beside(
    everything: Comparison,
) -> None:
    assert [row.method for row in everything.rows] == [
        *("dense", "router", "router+lora", "router@paper", "router@paper (sampled)", "joint"),
        *("coupled", "sequence", "random@paper", "mod", "mod (causal)", "mod-d", "mod-d (causal)"),
        *("d-llm", "sleb", "llm-drop", "laco", "sleb+lora", "dense+lora"),
    ]


def test_every_row_has_the_promised_keys_and_finite_values(everything: Comparison) -> None:
    document = json.loads(json.dumps(everything.to_dict(), allow_nan=False))
    for row in document["rows"]:
        assert {"method", "sparsity", "nll_per_token", "excess_nll", "flops"} <= row.keys()
        assert row["sparsity"].keys() == SENSES
        assert row["nll_per_token"] > 0
    facts = document["facts"]
    assert facts["tokens"] > 0
    assert facts["settings"]["router_stage"]["steps"] == 3


def test_dense_is_the_measure_of_all(everything: Comparison) -> None:
    dense = by_method(everything)["dense"]
    assert dense.excess_nll == 0
    assert set(dense.sparsity.values()) == {0.0}
    assert dense.flops == everything.facts["dense_flops"]
    assert dense.nll_per_token == everything.facts["dense_nll_per_token"]
    for row in everything.rows:
        assert row.excess_nll == row.nll_per_token - dense.nll_per_token
        assert row.flops == pytest.approx(dense.flops * (1 - row.sparsity["flops"]))


def test_every_method_is_near_its_budget(everything: Comparison) -> None:
    for name, row in by_method(everything).items():
        if name.startswith("dense"):
            assert row.sparsity["module"] == 0
        elif name in STATIC or name == "sleb+lora":
            assert row.sparsity["module"] == pytest.approx(WHOLE)
        elif name == "router@paper (sampled)" or name.startswith("mod"):
            # Drawn anew at a threshold of its own; and of three layers MoD leaves two dense.
            assert 0.1 < row.sparsity["module"] < 0.6, name
        elif name != "sequence":  # a few rows decide: whole rows are too coarse
            assert row.sparsity["module"] == pytest.approx(WHOLE, abs=0.12), name


def test_the_whole_comparison_lies_in_its_folder(base: Path, everything: Comparison) -> None:
    out = base.parent / "all"
    names = {"comparison.json", "comparison.md", "comparison.svg", "cache", "runs", "searches"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "comparison.json").read_text()) == json.loads(
        json.dumps(everything.to_dict())
    )
    assert (out / "comparison.md").read_text() == everything.to_markdown() + "\n"
    picture = (out / "comparison.svg").read_text()
    assert picture.count("<svg") == 1
    for row in everything.rows:
        assert row.method == "dense" or f"<!-- {row.method} -->" in picture


def test_router_is_what_train_makes_of_the_same_settings(
    base: Path, everything: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = by_method(everything)["router"]
    config = json.loads((Path(str(row.checkpoint)) / "run.json").read_text())["config"]
    monkeypatch.setattr("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5))
    data = [str(base.parent / "stories.jsonl")]
    result = train(str(base), data, tmp_path / "out", from_dict(TrainConfig, config))
    assert result.held_out["router"].nll_per_token == row.nll_per_token
    assert result.held_out["router"].sparsity == row.sparsity
    assert result.held_out["dense"].nll_per_token == everything.facts["dense_nll_per_token"]
    assert result.held_out["dense"].tokens == everything.facts["tokens"]


def test_a_checkpoint_lies_where_its_row_says(everything: Comparison) -> None:
    rows = by_method(everything)
    stages = {
        "router": ("fit", "router"),
        "router+lora": ("fit", "router", "lora"),
        "joint": ("joint",),
    }
    for name, expected in stages.items():
        info = read_info(str(rows[name].checkpoint))
        assert info.stages == expected
        assert info.target_sparsity == WHOLE
        assert info.sparsity == rows[name].sparsity
    assert read_info(str(rows["d-llm"].checkpoint)).router.kv == "skip"
    assert read_info(str(rows["coupled"].checkpoint)).router.decides == "layer"
    assert rows["sleb"].checkpoint is rows["dense"].checkpoint is None


def test_random_routes_skip_as_much_as_the_routers_they_copy(everything: Comparison) -> None:
    rows = by_method(everything)
    for sense in ("module", "attn", "mlp"):
        ours, theirs = (rows[f"{kind}@paper"].sparsity[sense] for kind in ("random", "router"))
        assert ours == pytest.approx(theirs, abs=0.12)
    assert rows["random@paper"].nll_per_token != rows["router@paper"].nll_per_token


def test_whole_layers_skip_attention_and_mlp_alike(everything: Comparison) -> None:
    rows = by_method(everything)
    for name in ("coupled", "d-llm", "mod", "mod (causal)", "sleb"):
        assert rows[name].sparsity["attn"] == rows[name].sparsity["mlp"]
    assert rows["router@paper"].sparsity["attn"] != rows["router@paper"].sparsity["mlp"]


@pytest.mark.parametrize("name", ["router", "router+lora", "joint"])
def test_closeness_is_to_the_base_without_routers_and_lora(
    name: str, base: Path, everything: Comparison
) -> None:
    row = by_method(everything)[name]
    model, _ = load(str(row.checkpoint))
    plain = AutoModelForCausalLM.from_pretrained(base)
    kl, agreement, _ = reference.closeness(plain, model, setup_of(base).held_out())
    assert row.kl_to_dense == pytest.approx(kl, rel=1e-3)
    assert row.agreement == pytest.approx(agreement, abs=1e-9)


def test_every_row_has_closeness_and_only_dense_is_dense(everything: Comparison) -> None:
    dense, *rows = everything.rows
    assert (dense.kl_to_dense, dense.agreement) == (0, 1)
    for row in rows:
        assert (row.kl_to_dense or 0) > 0, row.method
        assert 0 <= (-1 if row.agreement is None else row.agreement) <= 1, row.method
    healed, removed = (by_method(everything)[name] for name in ("sleb+lora", "sleb"))
    assert healed.kl_to_dense != removed.kl_to_dense


def test_layers_that_were_merged_are_compared_with_the_base_as_it_was(
    base: Path, everything: Comparison
) -> None:
    setup, row = setup_of(base), by_method(everything)["laco"]
    model = setup.routed()
    order = STATIC["laco"].order(model, setup.search_text(), 1)
    plain = AutoModelForCausalLM.from_pretrained(base)
    with use_rule(model, Forced.without(sites_of(order))):
        kl, agreement, _ = reference.closeness(plain, model, setup.held_out())
    assert row.kl_to_dense == pytest.approx(kl, rel=1e-3)
    assert row.agreement == pytest.approx(agreement, abs=1e-9)


@pytest.mark.parametrize("name", ["sleb", "llm-drop"])
def test_static_methods_are_exact_at_whole_numbers_and_linear_between(
    name: str, base: Path, tmp_path: Path
) -> None:
    kind = STATIC[name]
    units = 3 if kind.units == "layers" else 6
    grid = (1 / units, 1.25 / units, 1.5 / units, 2 / units)
    found = compared(base, tmp_path / "out", "dense", name, sparsities=grid)
    _, *rows = found.rows
    setup = setup_of(base)
    for row, count in ((rows[0], 1), (rows[3], 2)):
        model = setup.routed()
        order = kind.order(model, setup.search_text(), count)
        with use_rule(model, Forced.without(sites_of(order))):
            measured = perplexity(model, setup.held_out())
        assert row.nll_per_token == measured.nll_per_token
        shares = ("module", "attn", "mlp")
        assert [row.sparsity[n] for n in shares] == [measured.sparsity[n] for n in shares]
        # Gone for good, attention takes its keys and values along.
        assert row.sparsity["flops"] >= measured.sparsity["flops"]
        assert row.note == f"{count} {kind.units} removed"
    for row, share in ((rows[1], 0.25), (rows[2], 0.5)):
        assert row.nll_per_token == pytest.approx(_between(rows, "nll_per_token", share))
        for name in ("flops", "kl_to_dense", "agreement"):
            assert getattr(row, name) == pytest.approx(_between(rows, name, share))
        for sense, value in row.sparsity.items():
            low, high = rows[0].sparsity[sense], rows[3].sparsity[sense]
            assert value == pytest.approx(low + share * (high - low))
        assert row.note == f"between 1 and 2 {kind.units} removed"
        assert row.sparsity["module"] == pytest.approx(row.target)


def _between(rows: list[Row], name: str, share: float) -> float:
    low, high = getattr(rows[0], name), getattr(rows[3], name)
    return low + share * (high - low)


def test_healing_trains_lora_around_each_whole_removal_next_to_the_budget(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healed: list[tuple[Any, dict[str, torch.Tensor]]] = []
    original = static.run_stage

    def watched(model: Any, *args: Any) -> Any:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        healed.append((original(model, *args), before))
        return healed[-1][0]

    monkeypatch.setattr(static, "run_stage", watched)
    found = compared(base, tmp_path / "out", "sleb+lora", "dense+lora", sparsities=(0.25,))
    assert [row.note for row in found.rows] == ["between 0 and 1 layers removed", ""]
    assert [row.sparsity["module"] for row in found.rows] == [pytest.approx(0.25), 0]
    (whole,) = compared(base, tmp_path / "out", "sleb+lora", sparsities=(WHOLE,)).rows
    mixed, dense = (row.nll_per_token for row in found.rows)
    assert mixed == pytest.approx(dense + 0.75 * (whole.nll_per_token - dense))
    assert len(healed) == 4
    for model, before in healed:
        after = dict(model.base_model.model.named_parameters())
        plain = {name.replace(".base_layer", ""): p for name, p in after.items()}
        assert all(torch.equal(plain[name], tensor) for name, tensor in before.items())
        assert any(p.any() for name, p in after.items() if "lora_B" in name)
