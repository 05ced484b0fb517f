import json
import logging
from pathlib import Path

import pytest
import torch

from cases import routed
from runs import metrics, rows, run, stage_trainer, tiny_config
from skipgpt.analysis.statistics import entropy_bits
from skipgpt.model.state import record_routing
from skipgpt.training.loop.metric_accumulator import StepSums
from skipgpt.training.loop.routing_metrics import margin_metrics


def test_a_line_says_what_every_module_keeps_and_how_decided_it_is(
    base_folder: Path, tmp_path: Path
) -> None:
    run(base_folder, tmp_path / "out", tiny_config(stages="router,lora"))
    for line in metrics(tmp_path / "out"):
        keep = line["keep"]
        assert {name: len(rates) for name, rates in keep.items()} == {"attn": 3, "mlp": 3}
        rates = [rate for each in keep.values() for rate in each]
        assert all(0 <= rate <= 1 for rate in rates)
        assert line["entropy"] == pytest.approx(
            entropy_bits(torch.tensor(rates)).mean().item(), abs=1e-3
        )
        if line["stage"] == "router":
            # Equal tokens have equal margins in the first layer, so the target is met but for ties.
            assert 1 - sum(rates) / len(rates) == pytest.approx(0.25, abs=0.03)
            assert {"threshold", "argmax_sparsity", "temperature"} <= line.keys()
        else:
            assert "threshold" in line
            assert not {"argmax_sparsity", "temperature"} & line.keys()


def test_trackers_get_each_keep_rate_as_a_number_of_its_own(tmp_path: Path) -> None:
    trainer = stage_trainer(routed(), "router", tiny_config(), rows(), tmp_path)
    trainer.train()
    last = [line for line in trainer.state.log_history if "loss" in line][-1]
    names = {f"keep/{module}/{layer}" for module in ("attn", "mlp") for layer in range(3)}
    assert names <= last.keys()
    assert all(isinstance(value, int | float) for value in last.values())


def test_the_temperature_of_a_line_is_that_of_its_last_step(
    base_folder: Path, tmp_path: Path
) -> None:
    run(base_folder, tmp_path / "out")
    seen = [line["temperature"] for line in metrics(tmp_path / "out")]
    assert seen == pytest.approx([5 - 4 * step / 6 for step in range(6)])


def test_the_swing_is_the_deviation_of_the_steps_of_a_line(
    base_folder: Path, tmp_path: Path
) -> None:
    run(base_folder, tmp_path / "each", tiny_config(log_every=1))
    run(base_folder, tmp_path / "all", tiny_config(log_every=6))
    each, (line,) = metrics(tmp_path / "each"), metrics(tmp_path / "all")
    steps = torch.tensor([one["sparsity"] for one in each])
    assert line["sparsity_swing"] == pytest.approx(steps.std().item(), rel=1e-4)
    assert all("sparsity_swing" not in one for one in each)


def test_metrics_of_a_forward_do_not_count_padding() -> None:
    model, ids = routed(), rows(2)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    with record_routing(model) as trace:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    step = trace.steps[0]
    assert step.stacked("margin").shape == (6, 2 * 16 - 9)
    assert 1 - step.stacked("keep").float().mean().item() == pytest.approx(step.sparsity().item())


@pytest.mark.parametrize("target", [0.0, 0.25, 0.95])
def test_the_threshold_meets_the_target(target: float) -> None:
    margins = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    found = margin_metrics(margins, target, torch.full((8,), 1 / 8))
    if target:
        assert (margins <= found["threshold"]).float().mean().item() == pytest.approx(target)
    assert found["argmax_sparsity"] == pytest.approx((margins <= 0).float().mean().item())
    rates = [value for name, value in found.items() if name.startswith("keep/")]
    assert sum(rates) / len(rates) == pytest.approx(1 - target, abs=1e-3)


def test_sums_add_parts_of_a_step_until_they_are_taken() -> None:
    sums = StepSums()
    for parts in ((1.0, 2.0), (5.0,)):
        for part in parts:
            sums.add(loss=torch.tensor(part))
        sums.end_step()
    assert {name: taken.tolist() for name, taken in sums.take().items()} == {"loss": [3.0, 5.0]}
    assert sums.take() == {}


def test_a_run_that_misses_its_target_is_warned_of_once(
    base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(target_sparsity=0.9, router_stage__start="keep")
    with caplog.at_level(logging.WARNING, "skipgpt"):
        run(base_folder, tmp_path / "out", config)
    said = [
        record.getMessage()
        for record in caplog.records
        if "target is missed" in record.msg % record.args
    ]
    assert len(said) == 1
    assert "stage router, step 6" in said[0]
    assert "router_stage.alpha" in said[0]


def test_the_dense_loss_is_noted_before_training(base_folder: Path, tmp_path: Path) -> None:
    result = run(base_folder, tmp_path / "out")
    noted = json.loads((tmp_path / "out" / "run.json").read_text())["held_out"]
    assert noted["dense"]["nll_per_token"] == result.held_out["dense"].nll_per_token
    assert list(noted) == ["dense", "router"]
