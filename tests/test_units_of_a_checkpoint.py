"""The unit of a sparsity in a checkpoint, of today and of before there were units."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import skipgpt
from command import skipgpt as command
from runs import logits, make_checkpoint, rows, shared_checkpoint
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.errors import ConfigError
from skipgpt.evaluation.calibrate import calibrate_checkpoint
from skipgpt.model.sparsity import set_sparsity
from skipgpt.model.state import routing_state
from skipgpt.system.device_profile import Machine, store_profile


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The shared checkpoint as version 0.1 wrote it: format 1, one curve, no unit."""
    folder = Path(shutil.copytree(shared_checkpoint(), tmp_path / "old"))
    path = folder / "skipgpt_config.json"
    values = json.loads(path.read_text())
    curves = values.pop("curves")
    for later in ("budget", "timed", "hardware"):
        del values[later]
    path.write_text(json.dumps(values | {"curve": curves["modules"], "format_version": 1}))
    return folder


def test_a_checkpoint_of_before_speaks_of_modules(old: Path) -> None:
    info, today = read_info(old), read_info(shared_checkpoint())
    assert (info.budget, set(info.curves)) == ("modules", {"modules"})
    assert info.curve == today.curve
    model, expected = load(old, merge=True)[0], load(shared_checkpoint(), merge=True)[0]
    assert routing_state(model).rule == routing_state(expected).rule
    assert torch.equal(logits(model), logits(expected))
    again, _ = load(old, sparsity=0.4, budget="modules")
    assert routing_state(again).rule == routing_state(load(old, sparsity=0.4)[0]).rule


def test_asking_it_for_flops_says_to_calibrate_again(old: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(old, sparsity=0.2, budget="flops")
    assert "setting the sparsity in FLOPs: got a model that was calibrated in modules only" in str(
        caught.value
    )
    assert "train it with `skipgpt train`, or calibrate it again" in str(caught.value)


def test_calibrated_again_it_has_both(old: Path, tmp_path: Path) -> None:
    from runs import write_documents
    from skipgpt.config import DataConfig

    data = [str(write_documents(tmp_path))]
    config = DataConfig(block_size=16, held_out=0.5, calibration_tokens=256)
    info = calibrate_checkpoint(old, data, config, target=0.2, budget="flops")
    assert (info.budget, set(info.curves), info.format_version) == (
        "flops",
        {"modules", "flops"},
        2,
    )
    assert info == read_info(old)
    model, _ = load(old)
    assert routing_state(model).curves.budget == "flops"
    assert "target sparsity 20% of FLOPs" in (old / "README.md").read_text()


def test_an_uncalibrated_checkpoint_of_before_has_no_curve(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out", calibrated=False)
    path = tmp_path / "out" / "skipgpt_config.json"
    values = json.loads(path.read_text())
    del values["curves"]
    path.write_text(json.dumps(values | {"curve": None, "format_version": 1}))
    assert read_info(tmp_path / "out").curves == {}
    assert routing_state(load(tmp_path / "out")[0]).curves is None


def test_a_unit_without_a_sparsity_is_refused() -> None:
    with pytest.raises(ConfigError, match="'flops' without a sparsity; expected the sparsity that"):
        load(shared_checkpoint(), budget="flops")


def test_a_curve_of_time_is_saved_and_loaded_with_what_it_counts(
    base_folder: Path, tmp_path: Path
) -> None:
    store_profile(Machine(1e9, 1e9, 1e-6, 1e-6), torch.device("cpu"), torch.float32)
    model, info = make_checkpoint(base_folder, tmp_path / "out")
    assert set(info.curves) == {"modules", "flops", "time"}
    assert read_info(tmp_path / "out") == info
    loaded, _ = load(tmp_path / "out", sparsity=0.2, budget="time")
    assert routing_state(loaded).curves == routing_state(model).curves
    expected = routing_state(model).curves.threshold_at(0.2, "time")
    assert routing_state(loaded).rule.value == expected
    skipgpt.export_merged(tmp_path / "out", tmp_path / "merged")
    skipgpt.register()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", sparsity=0.2, budget="time")
    assert routing_state(merged).rule.value == expected


def test_a_machine_that_is_profiled_later_gives_the_checkpoint_its_curve_of_time(
    base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, info = make_checkpoint(base_folder, tmp_path / "before")
    assert set(info.curves) == {"modules", "flops"}
    store_profile(Machine(1e9, 1e9, 1e-6, 1e-6), torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    expected, _ = make_checkpoint(base_folder, tmp_path / "after")
    loaded, _ = load(tmp_path / "before", sparsity=0.2, budget="time")
    curves = routing_state(loaded).curves
    # Keep ratios are stored in four digits, and those of the target are of more text.
    assert curves.threshold_at(0.2, "time") == pytest.approx(
        routing_state(expected).curves.threshold_at(0.2, "time"), abs=0.01
    )
    assert routing_state(loaded).rule.value == curves.threshold_at(0.2, "time")
    assert curves.hardware == routing_state(expected).curves.hardware
    assert not caplog.text
    assert read_info(tmp_path / "before") == info  # the folder is as it was


def test_seconds_of_other_hardware_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(shared_checkpoint(), tmp_path / "copy"))
    path = copy / "skipgpt_config.json"
    values = json.loads(path.read_text())
    values["curves"]["time"] = values["curves"]["flops"]
    timed = {"phase": "decode", "batch_size": 1, "context": 64}
    path.write_text(json.dumps(values | {"timed": timed, "hardware": {"device": "an abacus"}}))
    with caplog.at_level("WARNING", "skipgpt"):
        load(copy, sparsity=0.2)
        assert not caplog.text
        load(copy, sparsity=0.2, budget="time")
    assert "counts the seconds of an abacus, and this is" in caplog.text
    assert "decode, batch size 1, context of 64 tokens; an abacus" in command("show", copy).stdout


def test_without_a_curve_of_time_no_seconds_are_spoken_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigError, match="setting the sparsity in time: got a machine that was n"):
        load(shared_checkpoint(), sparsity=0.2, budget="time")
    assert not caplog.text


def test_show_says_the_unit_of_each_number() -> None:
    done = command("show", str(shared_checkpoint()))
    assert "target sparsity  25% of modules" in done.stdout
    assert "of modules, 0 to " in done.stdout
    assert "of FLOPs" in done.stdout


def test_a_merged_export_takes_the_unit_wherever_it_takes_a_sparsity(tmp_path: Path) -> None:
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "merged", sparsity=0.1, budget="flops")
    skipgpt.register()
    expected, _ = load(shared_checkpoint(), merge=True, sparsity=0.1, budget="flops")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert routing_state(plain).rule == routing_state(expected).rule
    assert (plain.config.sparsity, plain.config.budget) == (0.1, "flops")
    named = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", sparsity=0.3, budget="modules"
    )
    set_sparsity(expected, 0.3, budget="modules")
    assert routing_state(named).rule == routing_state(expected).rule
    ids = rows(1)
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    given = plain.generate(ids, sparsity=0.3, budget="modules", **how)
    assert torch.equal(given, named.eval().generate(ids, **how))


def test_a_merged_export_of_before_speaks_of_modules(tmp_path: Path) -> None:
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "merged")
    skipgpt.register()
    path = tmp_path / "merged" / "config.json"
    values = json.loads(path.read_text())
    calibration = values.pop("calibration")
    del values["budget"]
    path.write_text(json.dumps(values | {"curve": calibration["curves"]["modules"]}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", sparsity=0.4)
    expected, _ = load(shared_checkpoint(), merge=True, sparsity=0.4)
    assert routing_state(model).rule == routing_state(expected).rule
    with pytest.raises(ConfigError, match="calibrated in modules only"):
        set_sparsity(model, 0.2, budget="flops")
