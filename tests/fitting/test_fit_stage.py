"""Stage `fit` makes a calibrated checkpoint without a training step, and refuses what it cannot."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import pytest
import torch

from cases import families, routed
from runs import logits, rows, run, tiny_config, weights
from skipgpt.checkpoint.loading import load
from skipgpt.config import TrainConfig
from skipgpt.cost import Savings, savings
from skipgpt.errors import ConfigError, DataError, StoppedError
from skipgpt.evaluation.meter import Meter
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.fitting import fit as fitting
from skipgpt.fitting import rounds
from skipgpt.fitting.costs import measure_costs
from skipgpt.fitting.fit import fit_model, fit_routers, price_margins
from skipgpt.fitting.regression import Design
from skipgpt.model.state import record_routing, routing_state, use_rule
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import Site, Threshold
from skipgpt.system.progress import advancing
from tiny import save_base


def _config(**changes: Any) -> TrainConfig:
    tiny = {
        "stages": "fit",
        "fit_stage__tokens": 512,
        "fit_stage__stand_in_tokens": 256,
        "router__normalize": True,
        "router__stand_in": 2,
    }
    return tiny_config(**(tiny | changes))


@pytest.fixture(scope="module")
def first_fit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `out` of a base, and in `cache` what it kept."""
    folder = tmp_path_factory.mktemp("first-fit")
    save_base(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPGPT_CACHE", str(folder / "cache"))
        run(folder / "base", folder / "out", _config())
    return folder


@pytest.fixture
def fitted(first_fit: Path) -> Path:
    """The base of the first fit, whose fit this test has in its own cache."""
    shutil.copytree(first_fit / "cache", os.environ["SKIPGPT_CACHE"])
    return first_fit / "base"


def test_it_gives_a_calibrated_checkpoint_that_skips_what_was_asked_for(
    base_folder: Path, tmp_path: Path
) -> None:
    result = run(base_folder, tmp_path / "out", _config(target_sparsity=0.3))
    assert result.info.stages == ("fit",)
    assert result.held_out["fit"].sparsity["module"] == pytest.approx(0.3, abs=0.08)
    model, _ = load(tmp_path / "out")
    rule = routing_state(model).rule
    assert isinstance(rule, Threshold)
    assert rule.value == pytest.approx(0.0, abs=1e-6)
    found = json.loads((tmp_path / "out" / "run.json").read_text())["fit"]
    assert len(found["sites"]) == 6
    assert all(site["cost"] > 0 for site in found["sites"])


def test_the_keep_ratios_that_it_stores_are_those_at_their_thresholds(
    base_folder: Path, tmp_path: Path
) -> None:
    info = run(base_folder, tmp_path / "out", _config(target_sparsity=0.3)).info
    model, _ = load(tmp_path / "out")
    text = torch.randint(0, model.config.vocab_size, (16, 16))
    shares = []
    for threshold, *stored in info.keep_at:
        with use_rule(model, Threshold(threshold)):
            shares.append((perplexity(model, text).sparsity["module"], 1 - fmean(stored)))
    # Of another text, and of few tokens: near, and rising alike.
    assert [ours for ours, _ in shares] == pytest.approx([theirs for _, theirs in shares], abs=0.15)
    assert shares[0][1] < 0.3 < shares[-1][1]


def test_its_threshold_is_searched_on_no_more_tokens_than_it_is_calibrated_on(
    base_folder: Path, tmp_path: Path
) -> None:
    searched = []

    def meter(model: Any, text: torch.Tensor, savings: Any) -> Meter:
        searched.append(text.numel())
        return Meter(model, text, savings)

    with mock.patch.object(rounds, "Meter", meter):
        run(base_folder, tmp_path / "out", _config(data__calibration_tokens=128))
    assert searched
    assert max(searched) <= 128


def test_other_stages_follow_it_and_start_where_it_ended(base_folder: Path, tmp_path: Path) -> None:
    settings = {"router_stage__noise": 0.3, "router_stage__distill": 1, "lora_stage__distill": 0.5}
    stages = _config(stages="fit,router,lora", **settings)
    with mock.patch("skipgpt.training.measurement.start_routers") as start:
        result = run(base_folder, tmp_path / "out", stages)
    start.assert_not_called()
    assert list(result.held_out) == ["dense", "fit", "router", "lora"]
    lines = [json.loads(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["kl_to_dense"] >= 0 for line in lines if "kl_to_dense" in line)
    assert {line["stage"] for line in lines if "kl_to_dense" in line} == {"router", "lora"}


def test_a_second_budget_gathers_nothing_again(fitted: Path, tmp_path: Path) -> None:
    with mock.patch("skipgpt.training.fit_stage.fit_model") as gathers:
        run(fitted, tmp_path / "two", _config(target_sparsity=0.4, budget="flops"))
    gathers.assert_not_called()
    run(fitted, tmp_path / "again", _config(target_sparsity=0.4, budget="flops", seed=0))
    assert torch.equal(logits(load(tmp_path / "two")[0]), logits(load(tmp_path / "again")[0]))


def test_rounds_are_made_for_each_budget_and_not_kept(base_folder: Path, tmp_path: Path) -> None:
    """A cached fit with rounds gives what a fresh one does; without them, what it was before."""
    fresh = run(base_folder, tmp_path / "fresh", _config(fit_stage__rounds=2))
    for count, name in ((0, "none"), (2, "again")):
        run(base_folder, tmp_path / name, _config(fit_stage__rounds=count))
        found = json.loads((tmp_path / name / "run.json").read_text())["fit"]
        assert found["cached"]
    assert weights(tmp_path / "again") == weights(tmp_path / "fresh")
    assert weights(tmp_path / "none") != weights(tmp_path / "fresh")
    assert fresh.held_out["fit"].closeness is not None


@pytest.mark.parametrize("change", [{"seed": 1}, {"fit_stage__draws": 2}, {"router__stand_in": 3}])
def test_whatever_else_changes_a_fit_is_gathered_for(
    fitted: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    with mock.patch("skipgpt.training.fit_stage.fit_model", wraps=fit_model) as gathers:
        run(fitted, tmp_path / "two", _config(**change))
    gathers.assert_called_once()


def test_a_damaged_fit_is_made_anew(
    fitted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (kept,) = Path(os.environ["SKIPGPT_CACHE"], "fits").iterdir()
    (kept / "fit.safetensors").write_bytes(b"no tensors")
    with caplog.at_level(logging.WARNING, "skipgpt"):
        run(fitted, tmp_path / "two", _config())
    assert "damaged and made anew" in caplog.text


def test_an_interrupted_fit_starts_cleanly(first_fit: Path, tmp_path: Path) -> None:
    base = first_fit / "base"
    stopped = mock.patch("skipgpt.fitting.fit.fit_routers", side_effect=KeyboardInterrupt)
    with stopped, pytest.raises(StoppedError):
        run(base, tmp_path / "out", _config())
    run(base, tmp_path / "out", _config(), resume=True)
    assert torch.equal(logits(load(tmp_path / "out")[0]), logits(load(first_fit / "out")[0]))


@families(["llama", "gemma2", "falcon", "mixtral", "cohere", "granite", "gpt2", "deepseek_v3"])
def test_margins_of_any_family_are_logarithms_of_mean_costs(family: str) -> None:
    model = routed(family, normalize=True, stand_in=2).requires_grad_(False)
    text = rows(32, 8)
    costs = measure_costs(model, text, batch_size=8)
    steps: list[tuple[int, int]] = []
    found = fit_routers(model, costs, by_token=False, on_step=lambda *at: steps.append(at))
    assert steps == [(n, len(costs)) for n in range(1, len(costs) + 1)]
    for site, each in zip(routers(model).items(), found, strict=True):
        assert each.cost == pytest.approx(costs[site[0]].value.mean().item() / 2)
        margin = site[1].margin(torch.randn(1, 1, 32)).item()
        assert margin == pytest.approx(math.log(2 * each.cost), abs=1e-4)


@pytest.mark.parametrize(
    "router",
    [{"head": "mlp"}, {"input": "module_input"}, {"decides": "layer"}, {"normalize": False}],
)
def test_every_kind_of_router_is_fitted(
    router: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipgpt.fitting.heads.STEPS", 100)
    model = routed("llama", **({"normalize": True} | router))
    config = _config(**{f"router__{name}": value for name, value in router.items()})
    found = fit_model(model, rows(40, 16), config, advancing)
    assert len(found) == (3 if router.get("decides") == "layer" else 6)
    with record_routing(model) as trace, torch.no_grad():
        model(input_ids=rows(2, 16))
    assert torch.isfinite(trace.margins()).all()


def test_layers_that_do_not_fit_into_memory_together_take_more_passes() -> None:
    one, other = (routed("llama", normalize=True) for _ in range(2))
    text = rows(40, 16)
    fit_model(one, text, _config(), advancing)
    with mock.patch.object(fitting, "INPUT_BYTES", 512 * 32 * 2):
        assert list(fitting.layer_groups(other, 512)) == [[0], [1], [2]]
        fit_model(other, text, _config(), advancing)
    for site, router in routers(one).items():
        # Labels are drawn from the same seed in every pass.
        torch.testing.assert_close(router.weight, routers(other)[site].weight)


def test_a_budget_in_flops_prices_margins_by_what_a_site_saves() -> None:
    model = routed("llama", normalize=True)
    fit_model(model, rows(40, 16), _config(), advancing)
    state, saved = torch.randn(1, 1, 32), savings(model, "flops", 8.5)
    before = {site: router.margin(state).item() for site, router in routers(model).items()}
    price_margins(model, saved)
    for site, router in routers(model).items():
        priced = before[site] - math.log(saved.by_site[site] * 6)
        assert router.margin(state).item() == pytest.approx(priced, abs=1e-4)


def test_a_site_whose_stand_in_costs_more_than_it_saves_is_never_skipped() -> None:
    model = routed("llama", normalize=True)
    site = Site(1, "attn")
    price_margins(
        model, Savings("flops", {each: -0.01 if each == site else 0.2 for each in routers(model)})
    )
    assert routers(model)[site].margin(torch.randn(1, 5, 32)).min() > 50


def test_a_module_that_adds_nothing_is_skipped_first(caplog: pytest.LogCaptureFixture) -> None:
    model = routed("llama", normalize=True)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    with caplog.at_level(logging.WARNING, "skipgpt"):
        found = fit_model(model, rows(40, 16), _config(), advancing)
    assert "layer 1, mlp: skipping it costs nothing on this text" in caplog.text
    assert [each.cost == 0 for each in found] == [False, False, False, True, False, False]
    state = torch.randn(1, 1, 32)
    margins = {site: router.margin(state).item() for site, router in routers(model).items()}
    assert min(margins, key=lambda site: margins[site]) == Site(1, "mlp")


def test_too_little_text_is_refused(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"48 tokens of training text.*64 or more.*give more text"):
        fit_model(routed("llama"), rows(3, 16), _config(), advancing)
    with pytest.raises(DataError, match=r"raise fit_stage.tokens to 64"):
        run(base_folder, tmp_path / "out", _config(fit_stage__tokens=48))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"router__kv": "skip"}, r'router.kv = "skip".*--stages router,lora'),
        ({"router__decides": "sequence"}, r'router.decides = "sequence".*--stages router,lora'),
        ({"stages": "router,fit"}, r"fit as the first stage"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_loaded(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(tmp_path / "no-such-base", tmp_path / "out", _config(**changes))


def test_several_processes_are_refused_before_they_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", None)  # would wait for the other process
    with pytest.raises(ConfigError, match=r"got 2 processes.*--stages fit"):
        run(tmp_path / "no-such-base", tmp_path / "out", _config())


def test_a_checkpoint_is_not_fitted_again(first_fit: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trained before.*give the base model as BASE"):
        run(first_fit / "out", tmp_path / "two", _config())


def test_inputs_in_float16_predict_as_those_in_float32() -> None:
    read = torch.randn(400, 8)
    cost = (read[:, 0] + torch.randn(400)).square() + 1e-3
    whole, half = (Design(each).predict(cost) for each in (read, read.half()))
    torch.testing.assert_close(half.weight, whole.weight, rtol=0, atol=2e-3)
