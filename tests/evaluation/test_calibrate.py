import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from runs import make_checkpoint, rows, shared_checkpoint, weights, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.errors import ConfigError, SkipGPTError
from skipgpt.evaluation.calibrate import calibrate, calibrate_checkpoint, subsample_rows
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.model.base import load_base
from skipgpt.model.sparsity import set_sparsity
from skipgpt.model.state import record_routing, routing_state
from skipgpt.model.surgery import add_routers, routers
from skipgpt.routing.router import set_constant
from tiny import tiny_routed


@pytest.fixture
def _short_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5))


short_dial = pytest.mark.usefixtures("_short_dial")


def _model() -> nn.Module:
    return tiny_routed(router=RouterConfig(normalize=True), initializer_range=0.2)


def _measured(model: nn.Module, blocks: Tensor) -> float:
    return perplexity(model, blocks).sparsity["module"]


@short_dial
@pytest.mark.parametrize("target", [0.1, 0.25, 0.6])
def test_other_text_of_the_same_kind_runs_at_the_target(target: float) -> None:
    model = _model()
    calibrate(model, rows(64, seed=1), target=target, batch_size=64)
    assert _measured(model, rows(128, seed=2)) == pytest.approx(target, abs=0.01)


def test_the_whole_dial_holds_on_other_text() -> None:
    model = _model()
    curve = calibrate(model, rows(64, seed=1), batch_size=64)
    assert [round(20 * sparsity) for sparsity, _ in curve.points] == list(range(17))
    other = rows(64, seed=2)
    for sparsity in (0.05, 0.33, 0.8):
        set_sparsity(model, sparsity)
        assert _measured(model, other) == pytest.approx(sparsity, abs=0.02)


@short_dial
def test_calibrating_without_a_target_stores_the_curve_and_leaves_the_rule() -> None:
    model = _model()
    before = routing_state(model).rule
    curve = calibrate(model, rows(4))
    assert routing_state(model).rule == before
    assert routing_state(model).curves.curve() == curve


@short_dial
def test_sparsity_zero_keeps_everything() -> None:
    model = _model()
    calibrate(model, rows(4), target=0.0)
    assert _measured(model, rows(4)) == 0


@short_dial
def test_calibration_changes_no_weight() -> None:
    model = _model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    calibrate(model, rows(4), target=0.5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_routers_that_cannot_reach_a_small_target_do_not_skip_everything() -> None:
    model = _model()
    for router in routers(model).values():
        set_constant(router, 1.0)
    calibrate(model, rows(4), target=0.1)
    assert _measured(model, rows(4)) <= 0.5


def test_a_model_that_was_never_calibrated_has_no_dial() -> None:
    with pytest.raises(ConfigError, match=r"never calibrated; .*skipgpt\.calibrate"):
        set_sparsity(_model(), 0.25)


@short_dial
def test_a_checkpoint_on_disk_gains_its_dial(base_folder: Path, tmp_path: Path) -> None:
    make_checkpoint(base_folder, tmp_path / "out", calibrated=False)
    before = weights(tmp_path / "out")
    data = [str(write_documents(tmp_path))]
    config = DataConfig(block_size=16, held_out=0.5)
    info = calibrate_checkpoint(tmp_path / "out", data, config, target=0.3)
    assert info == read_info(tmp_path / "out")
    assert info.target_sparsity == 0.3
    assert info.curve is not None
    assert info.sparsity["module"] == pytest.approx(0.3, abs=0.05)
    assert [len(info.keep[kind]) for kind in ("attn", "mlp")] == [3, 3]
    rates = [*info.keep["attn"], *info.keep["mlp"]]
    assert sum(rates) / len(rates) == pytest.approx(1 - info.sparsity["module"], abs=1e-12)
    assert weights(tmp_path / "out") == before
    load(tmp_path / "out", sparsity=0.5)


def test_a_checkpoint_that_cannot_be_calibrated_stays_as_it_was(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out", calibrated=False)
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(SkipGPTError):
        calibrate_checkpoint(tmp_path / "out", [str(tmp_path / "none")], DataConfig(), target=0.3)
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@short_dial
def test_calibrating_a_healed_checkpoint_keeps_its_adapter(tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(shared_checkpoint(), tmp_path / "out"))
    data = [str(write_documents(tmp_path))]
    config = DataConfig(block_size=16, held_out=0.5, calibration_tokens=256)
    info = calibrate_checkpoint(copy, data, config, target=0.4)
    assert info.stages == ("router", "lora")
    assert hasattr(load(copy)[0], "peft_config")


def test_a_cut_is_spread_evenly_and_never_empty() -> None:
    blocks = torch.arange(100)[:, None].expand(100, 16)
    assert subsample_rows(blocks, 64)[:, 0].tolist() == [0, 33, 66, 99]
    assert len(subsample_rows(blocks, 3)) == 1
    assert len(subsample_rows(blocks, 10**9)) == 100


def test_a_target_beyond_the_end_of_the_dial_is_warned_of_and_met_as_far_as_it_goes(
    base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = load_base(str(base_folder))
    add_routers(model, RouterConfig(normalize=True))
    for n, router in enumerate(routers(model).values()):  # one module goes, then all of them
        set_constant(router, 0.0 if n == 0 else 5.0)
    with caplog.at_level("WARNING", "skipgpt"):
        curve = calibrate(model.eval(), rows(16), target=0.5)
    assert curve.largest == pytest.approx(1 / 6)
    assert "no threshold skips 50 % of modules; from 16.7 % on" in caplog.text
    info = dataclasses.replace(describe(model, str(base_folder)), target_sparsity=0.5)
    save(model, tmp_path / "c", info)
    loaded, _ = load(tmp_path / "c")
    with record_routing(loaded) as trace, torch.no_grad():
        loaded(input_ids=rows(2), use_cache=False)
    assert trace.sparsity() == pytest.approx(1 / 6)
    with pytest.raises(ConfigError, match=r"at most 0\.17"):
        load(tmp_path / "c", sparsity=0.5)
