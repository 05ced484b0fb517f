"""The budget that training aims for, in the unit that it counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from runs import metrics, rows, run, stage_trainer, tiny_config
from skipgpt.checkpoint.folder import read_info
from skipgpt.config import RouterConfig, TrainConfig, recipe
from skipgpt.config.settings import from_dict
from skipgpt.cost import savings, sparsities
from skipgpt.errors import ConfigError, StoppedError
from skipgpt.model.state import record_routing, routing_state
from skipgpt.routing.decision import GumbelSample, Site
from skipgpt.system.device_profile import Machine, store_profile
from skipgpt.training.loop.routing_metrics import margin_metrics
from tiny import tiny_routed


def test_recipes_count_what_they_say() -> None:
    assert recipe("paper").budget == TrainConfig().budget == "modules"
    assert recipe("default").budget == "flops"
    assert from_dict(TrainConfig, {"target_sparsity": 0.4}).budget == "modules"


def test_what_a_step_saves_has_the_gates_gradient() -> None:
    model = tiny_routed(router=RouterConfig(stand_in=2))
    state = routing_state(model)
    state.rule, state.execution = GumbelSample(1.0), "gated"
    with record_routing(model) as trace:
        model(input_ids=rows(2), use_cache=False)
    saved = savings(model, "flops", context=8.5)
    found = trace.steps[0].saved(saved.by_site, saved.overhead)
    assert found.item() == pytest.approx(saved.share(trace.keep_ratios()), abs=1e-6)
    assert found.item() == pytest.approx(
        sparsities(model, trace.keep_ratios(), 8.5)["flops"], abs=1e-6
    )
    gate = trace.steps[0].decisions[2].mlp.gate  # nothing decides after it
    gradient = torch.autograd.grad(found, gate, retain_graph=True)[0]
    weight = saved.by_site[Site(2, "mlp")]
    assert torch.allclose(gradient, torch.full_like(gate, -weight / gate.numel()))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_budget_term_counts_the_unit_however_a_step_is_cut(
    accumulation: int, tmp_path: Path
) -> None:
    config = tiny_config(
        budget="flops", router__stand_in=2, batch_size=4 // accumulation, router_stage__steps=2
    )
    config = dataclasses.replace(config, accumulation=accumulation)
    model = tiny_routed(router=config.router).train()
    trainer = stage_trainer(model, "router", config, rows(8), tmp_path)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "sparsity" in line]
    whole = tiny_routed(router=config.router).train()
    other = stage_trainer(
        whole,
        "router",
        dataclasses.replace(config, batch_size=4, accumulation=1),
        rows(8),
        tmp_path / "whole",
    )
    other.train()
    expected = [line for line in other.state.log_history if "sparsity" in line]
    for one, two in zip(lines, expected, strict=True):
        assert one["sparsity"] == pytest.approx(two["sparsity"], abs=1e-5)
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


@pytest.mark.parametrize("name", ["paper", "default"])
def test_a_run_hits_its_target_in_its_unit(name: str, base_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(name, target_sparsity=0.15, budget="flops")
    result = run(base_folder, tmp_path / "out", config)
    assert result.info == read_info(tmp_path / "out")
    assert (result.info.budget, result.info.target_sparsity) == ("flops", 0.15)
    assert {"modules", "flops"} <= set(result.info.curves)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["config"]["budget"] == "flops"
    assert all("sparsity" in line for line in metrics(tmp_path / "out"))


def test_a_target_out_of_reach_is_refused_before_anything_is_written(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(budget="flops", target_sparsity=0.95)
    with pytest.raises(ConfigError) as caught:
        run(base_folder, tmp_path / "out", config)
    assert "planning the budget: got a target of 95.0% of FLOPs; expected at most " in str(
        caught.value
    )
    assert not (tmp_path / "out").exists()


def test_time_without_a_profile_is_refused_before_anything_is_written(
    base_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="run `skipgpt profile --device cpu"):
        run(base_folder, tmp_path / "out", tiny_config(budget="time"))
    assert not (tmp_path / "out").exists()


def test_a_run_reports_the_share_of_seconds_that_it_reached(
    base_folder: Path, tmp_path: Path
) -> None:
    store_profile(Machine(1e9, 1e9, 1e-6, 1e-6), torch.device("cpu"), torch.float32)
    config = tiny_config("default", target_sparsity=0.15, budget="time")
    info = run(base_folder, tmp_path / "out", config).info
    held_out = json.loads((tmp_path / "out" / "run.json").read_text())["held_out"]
    assert held_out["dense"]["sparsity"]["time"] == 0
    reached = held_out[config.stages[-1]]["sparsity"]["time"]
    assert reached == info.sparsity["time"] == pytest.approx(0.15, abs=0.1)


def test_a_run_begun_before_there_were_units_is_resumed_in_modules(
    base_folder: Path, tmp_path: Path
) -> None:
    from runs import stopping_at

    with stopping_at(3), pytest.raises(StoppedError):
        run(base_folder, tmp_path / "out")
    path = tmp_path / "out" / "run.json"
    made = json.loads(path.read_text())
    for later in ("budget", "budget_time"):
        del made["config"][later]
    path.write_text(json.dumps(made))
    with pytest.raises(ConfigError, match="other values than it was started with: config"):
        run(base_folder, tmp_path / "out", tiny_config(budget="flops"), resume=True)
    assert run(base_folder, tmp_path / "out", resume=True).info.budget == "modules"


def test_the_threshold_of_a_step_is_that_of_the_unit() -> None:
    margins = torch.tensor([[-2.0, 1.0], [-1.0, 2.0]])
    found = margin_metrics(margins, 0.3, torch.tensor([0.2, 0.6]))
    assert found["threshold"] == 0.0
    assert found["argmax_sparsity"] == pytest.approx(0.4)
    assert margin_metrics(margins, 0.09, torch.tensor([0.2, 0.6]))["threshold"] == -1.5
