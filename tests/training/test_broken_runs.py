"""Runs that fail or are broken off keep their last good state."""

import shutil
from math import nan
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from runs import run, stopping_at, straight_run, tiny_config, weights, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.data import load_blocks
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    SkipGPTError,
    StoppedError,
    TrainingError,
)
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.model.surgery import routers
from skipgpt.training.loop.callbacks import MetricsFile
from skipgpt.training.loop.trainer import RoutingTrainer
from tiny import byte_tokenizer


def test_a_loss_that_is_no_number_stops_the_run_at_its_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("paper", save_every=2)
    base, straight = straight_run(config)
    on_log = MetricsFile.on_log

    def poison(self, args, state, control, **more):
        on_log(self, args, state, control, **more)
        if state.global_step == 3:
            next(iter(routers(more["model"]).values())).bias.data.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", poison)
        with pytest.raises(
            TrainingError, match=r"router, step 4: got a loss of nan; expected a fi"
        ):
            run(base, tmp_path / "out", config)
    states = tmp_path / "out" / "trainer" / "router"
    assert [p.name for p in states.iterdir()] == ["checkpoint-2"]
    assert not (tmp_path / "out" / "skipgpt_config.json").exists()
    run(base, tmp_path / "out", config, resume=True)
    assert weights(tmp_path / "out") == weights(straight)


def test_weights_that_are_no_numbers_are_never_saved(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = RoutingTrainer.training_step

    def poison(self, model, *args, **more):
        loss = training_step(self, model, *args, **more)
        if self.state.global_step == 3:  # a gradient that overflows under a finite loss
            next(iter(routers(model).values())).bias.grad.fill_(torch.nan)
        return loss

    monkeypatch.setattr(RoutingTrainer, "training_step", poison)
    with pytest.raises(TrainingError):
        run(base_folder, tmp_path / "out", tiny_config("paper", save_every=1))
    states = list((tmp_path / "out" / "trainer" / "router").glob("*/trained.safetensors"))
    assert states
    for state in states:
        assert all(t.isfinite().all() for k, t in load_file(state).items() if k != "threshold")


def test_the_advice_after_a_diverged_run_is_not_to_resume_with_another_rate(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.Trainer.training_step", lambda *_, **__: torch.tensor(nan))
    with pytest.raises(TrainingError) as caught:
        run(base_folder, tmp_path / "out")
    assert "learning rate" in caught.value.todo
    assert "--resume" not in caught.value.todo


def test_a_full_disk_while_saving_a_state_keeps_the_state_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("paper", save_every=2)
    base, straight = straight_run(config)
    save = RoutingTrainer._save

    def full(self, output_dir=None, state_dict=None):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        save(self, output_dir, state_dict)

    with monkeypatch.context() as patch:
        patch.setattr(RoutingTrainer, "_save", full)
        with pytest.raises((OSError, SkipGPTError), match="No space left"):
            run(base, tmp_path / "out", config)
    run(base, tmp_path / "out", config, resume=True)
    assert weights(tmp_path / "out") == weights(straight)


def test_a_full_disk_is_reported_as_an_error_of_training(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self, output_dir=None, state_dict=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RoutingTrainer, "_save", full)
    with pytest.raises(SkipGPTError, match="No space left"):
        run(base_folder, tmp_path / "out")


def test_a_run_interrupted_after_training_ends_where_a_straight_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("default")
    base, straight = straight_run(config)

    def interrupt(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("skipgpt.training.measurement.calibrate", interrupt)
        with pytest.raises(StoppedError):
            run(base, tmp_path / "stopped", config)
    run(base, tmp_path / "stopped", config, resume=True)
    assert weights(tmp_path / "stopped") == weights(straight)


def test_a_run_resumed_after_healing_measures_the_base_and_not_lora(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config("paper", stages="router,lora", lora_stage__learning_rate=0.1)
    data = write_documents(base_folder.parent)
    run(base_folder, tmp_path / "out", config)
    resumed = run(base_folder, tmp_path / "out", config, resume=True)

    blocks = load_blocks([str(data)], byte_tokenizer(), config.data)
    rows = subsample_rows(blocks.held_out, config.data.evaluation_tokens)
    plain = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    with torch.no_grad():  # rows of one length: the mean of means is the mean
        loss = plain(input_ids=rows, labels=rows).loss.item()
    assert resumed.held_out["dense"].nll_per_token == pytest.approx(loss, abs=1e-5)
    assert abs(resumed.held_out["lora"].nll_per_token - loss) > 1e-3


def test_resuming_without_the_resume_state_trains_what_is_missing(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config("paper", stages="router,lora")
    with stopping_at(1, "lora"), pytest.raises(StoppedError):
        run(base_folder, tmp_path / "out", config)
    shutil.rmtree(tmp_path / "out" / "trainer")
    run(base_folder, tmp_path / "out", config, resume=True)
    assert read_info(tmp_path / "out").stages == ("router", "lora")


def test_a_metrics_line_cut_off_by_a_kill_does_not_stop_a_resume(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config("paper")
    with stopping_at(2), pytest.raises(StoppedError):
        run(base_folder, tmp_path / "out", config)
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rou')
    run(base_folder, tmp_path / "out", config, resume=True)
    assert "rou\n" not in (tmp_path / "out" / "metrics.jsonl").read_text()


def test_a_run_that_was_killed_after_a_stage_is_gone_on_with(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(stages=("router", "lora"))
    with stopping_at(1, "lora"), pytest.raises(StoppedError):
        run(base_folder, tmp_path / "out", config)
    assert (tmp_path / "out" / "skipgpt_config.json").exists()  # of stage `router`
    with pytest.raises(CheckpointError, match=r"interrupted run.*--resume to go on"):
        run(base_folder, tmp_path / "out", config)
    with pytest.raises(ConfigError, match="both --resume and --overwrite"):
        run(base_folder, tmp_path / "out", config, resume=True, overwrite=True)
    assert run(base_folder, tmp_path / "out", config, resume=True).info.stages[-1] == "lora"


def test_a_disk_that_is_full_for_the_optimizer_says_so_and_leaves_no_half_state(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipgpt.training.loop.resumable.OPTIMIZER", "/dev/full")
    config = tiny_config(save_every=1)
    with pytest.raises(TrainingError, match=r"saving step 1 of stage router .*room on the disk"):
        run(base_folder, tmp_path / "out", config)
    assert not list((tmp_path / "out" / "trainer" / "router").glob("checkpoint-*"))
