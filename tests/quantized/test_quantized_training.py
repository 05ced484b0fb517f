"""Training on quantised bases, and merging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import skipgpt
from command import skipgpt as command
from quantized import every_kind
from runs import ARGUMENTS, logits, run, stopping_at, tiny_config, weights, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    StoppedError,
)
from skipgpt.model.base import load_base
from skipgpt.model.loading.bitsandbytes import quantization_of
from skipgpt.model.surgery import routers


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@every_kind
def test_a_run_trains_routers_and_lora_and_its_checkpoint_gives_the_same_logits(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, trained = _bytes(base), []
    monkeypatch.setattr(
        "skipgpt.training.run.write",
        lambda model, *a, **k: trained.append(model) or write(model, *a, **k),
    )
    from skipgpt.checkpoint.saving import write

    result = run(
        base, tmp_path / "out", tiny_config("default", stages="router,lora"), quantize=kind
    )
    assert result.info.quantization == kind
    assert read_info(tmp_path / "out") == result.info
    made = json.loads((tmp_path / "out" / "run.json").read_text())
    assert made["quantize"] == kind
    assert made["versions"]["bitsandbytes"]
    loaded, _ = load(tmp_path / "out")
    assert quantization_of(loaded) == kind
    assert torch.equal(logits(loaded), logits(trained[-1]))
    with loaded.disable_adapter():
        assert (logits(loaded) - logits(trained[-1])).abs().max() > 1e-3
    assert _bytes(base) == before
    assert (
        f"# Routers for {base} in {kind} (bitsandbytes)"
        in (tmp_path / "out" / "README.md").read_text()
    )


@every_kind
def test_a_bfloat16_base_trains_and_loads(kind: str, base: Path, tmp_path: Path) -> None:
    config = tiny_config("default", stages="joint", activation_checkpointing=True)
    result = run(base, tmp_path / "out", config, quantize=kind, dtype="bfloat16")
    assert all(0 < each.nll_per_token < 20 for each in result.held_out.values())
    loaded, _ = load(tmp_path / "out", dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert logits(loaded).isfinite().all()


def test_routers_move_and_the_packed_weights_do_not(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", tiny_config(router_stage__start="keep"), quantize="4bit")
    loaded, _ = load(tmp_path / "out")
    plain, _ = load_base(str(base), quantize="4bit")
    held = dict(plain.named_parameters())
    assert all(torch.equal(p, held[n]) for n, p in loaded.named_parameters() if n in held)
    assert all(router.weight.abs().max() > 0 for router in routers(loaded).values())


def test_a_checkpoint_is_trained_further_on_the_base_it_was_trained_on(
    base: Path, tmp_path: Path
) -> None:
    run(base, tmp_path / "routers", quantize="8bit")
    data, config = str(tmp_path / "stories.jsonl"), tiny_config("default", stages="lora")
    result = skipgpt.train(str(tmp_path / "routers"), [data], tmp_path / "healed", config)
    assert result.info.quantization == "8bit"
    assert result.info.stages == ("router", "lora")
    with pytest.raises(ConfigError, match="to 4bit: got one that is held in 8bit already"):
        skipgpt.train(
            str(tmp_path / "routers"), [data], tmp_path / "other", config, quantize="4bit"
        )


def test_resuming_keeps_the_kind_and_gives_the_run_that_was_not_stopped(
    base: Path, tmp_path: Path
) -> None:
    config = tiny_config("default", stages="router,lora", save_every=1)
    run(base, tmp_path / "straight", config, quantize="4bit")
    for stage in ("router", "lora"):
        with stopping_at(2, stage), pytest.raises(StoppedError):
            run(base, tmp_path / "out", config, quantize="4bit", resume=stage == "lora")
        for other in (None, "8bit"):
            with pytest.raises(ConfigError, match="than it was started with: quantize"):
                run(base, tmp_path / "out", config, quantize=other, resume=True)
    run(base, tmp_path / "out", config, quantize="4bit", resume=True)
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_a_run_of_before_there_were_kinds_can_be_resumed(base: Path, tmp_path: Path) -> None:
    with stopping_at(2), pytest.raises(StoppedError):
        run(base, tmp_path / "out", tiny_config("paper"))
    path = tmp_path / "out" / "run.json"
    values = json.loads(path.read_text())
    assert values.pop("quantize") is None
    path.write_text(json.dumps(values))
    run(base, tmp_path / "out", tiny_config("paper"), resume=True)


def test_the_command_quantises(base: Path, tmp_path: Path) -> None:
    data, out = write_documents(tmp_path), tmp_path / "out"
    done = command("train", base, "--data", data, "--out", out, "--quantize", "4bit", *ARGUMENTS)
    assert done.status == 0, done.stderr
    assert "bitsandbytes" not in done.stderr
    assert read_info(out).quantization == "4bit"
    wrong = command("train", base, "--data", data, "--out", tmp_path / "o", "--quantize", "3bit")
    assert wrong.status == 2
    assert "got '3bit'; expected 8bit, 4bit or none" in wrong.stderr


def test_lora_stays_unmerged_over_quantised_weights(checkpoint: Path) -> None:
    model, _ = load(checkpoint, merge=True)
    assert any("lora_" in name for name, _ in model.named_parameters())
    assert torch.equal(logits(model), logits(load(checkpoint)[0]))


def test_a_merged_export_of_a_quantised_base_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exporting the checkpoint") as caught:
        skipgpt.export_merged(checkpoint, tmp_path / "merged")
    assert caught.value.got == "a base held in 4bit"
    assert "LoRA can be merged" in caught.value.expected
    assert "skipgpt.load" in caught.value.todo
    assert not (tmp_path / "merged").exists()
