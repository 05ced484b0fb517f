import json
import math
from pathlib import Path

import pytest
import torch

from cases import routed
from runs import metrics, rows, run, stage_trainer, tiny_config
from skipgpt.training.loop.arguments import training_arguments
from skipgpt.training.stages import plan


def test_every_log_step_has_a_line_with_what_a_plot_needs(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config("paper", log_every=2, stages="router,lora")
    run(base_folder, tmp_path / "out", config)
    lines = metrics(tmp_path / "out")
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("router", 2),
        ("router", 4),
        ("router", 6),
        ("lora", 2),
        ("lora", 4),
    ]
    for line in lines:
        assert {"loss", "lm_loss", "learning_rate", "grad_norm", "sparsity"} <= line.keys()
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))


def test_every_line_carries_the_seconds_since_the_stage_began(
    base_folder: Path, tmp_path: Path
) -> None:
    run(base_folder, tmp_path / "out")
    text = (tmp_path / "out" / "metrics.jsonl").read_text()
    seconds = [json.loads(line)["seconds"] for line in text.splitlines()]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_the_loss_is_the_language_models_plus_alpha_times_the_miss(
    base_folder: Path, tmp_path: Path
) -> None:
    run(base_folder, tmp_path / "out", tiny_config("paper", target_sparsity=0.4))
    for line in metrics(tmp_path / "out"):
        expected = line["lm_loss"] + 8 * abs(0.4 - line["sparsity"])
        assert line["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_line_over_several_steps_holds_their_means(base_folder: Path, tmp_path: Path) -> None:
    run(base_folder, tmp_path / "each", tiny_config("paper", log_every=1))
    run(base_folder, tmp_path / "pairs", tiny_config("paper", log_every=2))
    each, pairs = metrics(tmp_path / "each"), metrics(tmp_path / "pairs")
    for name in ("loss", "lm_loss", "sparsity"):
        means = [(each[n][name] + each[n + 1][name]) / 2 for n in (0, 2, 4)]
        assert [line[name] for line in pairs] == pytest.approx(means, rel=1e-5)


def test_the_papers_router_stage_keeps_its_rate_and_its_lora_stage_follows_a_cosine(
    tmp_path: Path,
) -> None:
    config = tiny_config("paper", lora_stage__steps=10)
    for stage, expected in (
        ("router", [2e-3] * 6),
        ("lora", [0.0] + [1e-4 * (1 + math.cos(math.pi * n / 9)) for n in range(9)]),
    ):
        trainer = stage_trainer(routed(), stage, config, rows(), tmp_path / stage)
        trainer.train()
        rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
        assert rates == pytest.approx(expected)


def test_the_gumbel_temperature_falls_from_five_to_one(tmp_path: Path) -> None:
    trainer = stage_trainer(routed(), "router", tiny_config(), rows(), tmp_path)
    temperatures = []
    for step in (0, 3, 6):
        trainer.state.global_step = step
        temperatures.append(trainer.rule().temperature)
    assert temperatures == [5.0, 3.0, 1.0]


def test_noise_and_order_of_rows_follow_the_same_seed(tmp_path: Path) -> None:
    config = tiny_config(seed=7)
    arguments = training_arguments(plan("router", config), config, tmp_path, torch.device("cpu"))
    assert (arguments.seed, arguments.data_seed) == (7, 7)
