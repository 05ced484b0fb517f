"""What is timed of routers, apart from time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmark_scripts import imported
from skipgpt.benchmark.subject import subject_of_shape
from skipgpt.benchmark.timing.phases import Cell
from skipgpt.model.execution import decode
from skipgpt.model.layer import SkippingLayer
from skipgpt.model.routed import RoutedLayer
from skipgpt.model.surgery import routers


@pytest.fixture
def script() -> ModuleType:
    return imported("routers")


def test_it_writes_both_kinds_of_router_for_each_run(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "new/routers.json"
    sizes = ["--tokens", "8", "12", "--cached", "6", "--repeats", "2"]
    monkeypatch.setattr(
        sys, "argv", ["routers", "--shapes", "llama-tiny", *sizes, "--out", str(out)]
    )
    script.main()
    result = json.loads(out.read_text())
    assert {"date", "device", "threads", "torch", "dtype", "repeats"} <= result.keys()
    runs = [("prefill", 8, 0), ("prefill", 12, 0), ("decode", 1, 6)]
    assert [
        (row["phase"], row["tokens"], row["cached"], row["routers"]) for row in result["rows"]
    ] == [(*run, kind) for run in runs for kind in ("paper", "default")]
    assert len(capsys.readouterr().out.splitlines()) == len(result["rows"])


def test_shares_are_medians_over_rounds(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"dense": [2.0, 4.0, 1.0], "paper": [1.0, 1.0, 1.0], "default": [2.0, 2.0, 2.0]}
    monkeypatch.setattr(script, "alternate", lambda *_: seconds)
    subject = subject_of_shape("llama-tiny")
    paper, default = script.measure(subject, Cell("prefill", subject.prompts(1, 8), 0), 3)
    assert (paper["time_share"], default["time_share"]) == (0.5, 1.0)
    assert paper["time_share_range"] == [0.375, 0.75]
    assert (paper["dense_seconds"], default["router_seconds"]) == (2.0, 2.0)


def test_flops_are_those_of_every_router_over_dense(script: ModuleType) -> None:
    subject = subject_of_shape("llama-tiny")
    cell = Cell("prefill", subject.prompts(1, 8), 0)
    parameters = sum(
        p.numel() for each in routers(subject.routed).values() for p in each.parameters()
    )
    dense = cell.cost(subject.routed).prompt.flops
    share = script.flops_share(subject.routed, cell.prompt)
    assert share == pytest.approx(2 * 8 * parameters / dense)


@pytest.mark.parametrize("tokens", [1, 5])
@torch.inference_mode()
def test_each_layer_decides_once_as_in_a_forward(
    script: ModuleType, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject_of_shape("llama-tiny").routed
    seen: list[tuple[str, int]] = []

    def noting(kind: str, made: object) -> object:
        def decide(layer: RoutedLayer, entering: torch.Tensor) -> object:
            if (decided := made(layer, entering)) is not None:
                seen.append((kind, layer.index))
            return decided

        return decide

    monkeypatch.setattr(decode, "decide", noting("numbers", decode.decide))
    monkeypatch.setattr(SkippingLayer, "_decide", noting("tensors", SkippingLayer._decide))
    script.decide(model, torch.randn(1, tokens, 32))
    decided = list(seen)
    seen.clear()
    model(torch.ones(1, tokens, dtype=torch.long))
    assert seen == decided == [("numbers" if tokens == 1 else "tensors", n) for n in range(2)]
