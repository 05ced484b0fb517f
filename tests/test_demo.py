"""The demo, made short: the same chain on the embedded model with a few steps and little text."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import skipgpt.demo
from cases import SITES, base, routed
from command import skipgpt as skipgpt_command
from runs import rows
from skipgpt.checkpoint.folder import read_info
from skipgpt.cost import savings
from skipgpt.model.surgery import stand_ins
from skipgpt.removal.units import sites_of
from skipgpt.routing.decision import Site

SHORT = {
    "fit_stage.tokens": 512,
    "fit_stage.stand_in_tokens": 512,
    "fit_stage.rounds": 1,
    "router_stage.static_tokens": 64,
    "lora_stage.steps": 2,
    "batch_size": 2,
    "data.block_size": 64,
    "data.calibration_tokens": 256,
    "data.evaluation_tokens": 512,
    "data.max_documents": 40,
}


def shorten(patches: pytest.MonkeyPatch | None = None) -> None:
    """Let the demos of this process take a moment."""
    patches = patches or pytest.MonkeyPatch()
    patches.setattr(skipgpt.demo, "SETTINGS", SHORT)
    patches.setattr("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5))


def test_the_command_and_a_call_with_one_seed_give_the_same_numbers_and_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    measured = mock.Mock(wraps=skipgpt.demo.perplexity)
    monkeypatch.setattr(skipgpt.demo, "perplexity", measured)
    first = skipgpt.demo.demo(tmp_path / "first", seed=3, sparsity=0.1)
    second = ("demo", "--out", tmp_path / "second", "--seed", 3, "--sparsity", 0.1)
    ended = skipgpt_command(*second, before=shorten)
    assert ended.status == 0, ended.stderr
    assert first.table() in ended.stdout
    written = (tmp_path / "first" / "demo.json").read_text()
    assert written == (tmp_path / "second" / "demo.json").read_text()

    numbers = json.loads(written)
    assert list(numbers["rows"]) == ["dense", "static", "fit", "fit+lora"]
    assert numbers["rows"]["dense"]["excess_nll"] == 0
    removed = numbers["static_modules"]
    assert len(set(removed)) == len(removed)
    # The last module that goes, which saves 5 % of the FLOPs at most, is the first to be enough.
    assert 0.1 <= numbers["rows"]["static"]["sparsity"]["flops"] < 0.1 + 0.05
    fitted = stand_ins(measured.call_args.args[0])  # what runs in place of what static removes
    assert all(bool(each.up.weight.any()) for each in fitted.values())
    assert numbers["samples"].keys() == {"dense", "sparse"}
    assert len(numbers["map"]["tokens"]) == len(numbers["map"]["attn"])
    for value in (row["nll_per_token"] for row in numbers["rows"].values()):
        assert f"{value:.4f}" in first.table()
    assert first.table().splitlines()[0].split()[-2:] == ["KL", "agreement"]
    for line, (name, row) in zip(
        first.table().splitlines()[1:], numbers["rows"].items(), strict=True
    ):
        close = row["closeness"] or {"kl_per_token": 0.0, "agreement": 1.0}
        assert (name == "dense") == (close["kl_per_token"] == 0)
        shown = [f"{close['kl_per_token']:.4f}", f"{close['agreement']:.1%}"]
        assert line.split()[-2:] == shown, name
    assert read_info(tmp_path / "first" / "checkpoint").stages == ("fit", "lora")
    page = (tmp_path / "first" / "report.html").read_text()
    assert "What does it skip?" in page
    assert "What does it skip?" in (tmp_path / "second" / "report.html").read_text()


@torch.no_grad()
def _loss_without(model: nn.Module, text: Tensor, site: Site, stand_in: nn.Module | None) -> float:
    """Nats per token of a Llama of transformers, one module of which adds nothing, or that."""
    layer, entering = model.model.layers[site.layer], []

    def instead(_: nn.Module, __: object, output: object) -> object:
        update = stand_in(entering[-1]) if stand_in else torch.zeros_like(entering[-1])
        return (update, *output[1:]) if isinstance(output, tuple) else update

    norm = layer.input_layernorm if site.module == "attn" else layer.post_attention_layernorm
    module = layer.self_attn if site.module == "attn" else layer.mlp
    with (
        norm.register_forward_pre_hook(lambda _, args: entering.append(args[0])),
        module.register_forward_hook(instead),
    ):
        return model(input_ids=text, labels=text, use_cache=False).loss.item()


@pytest.mark.parametrize("rank", [0, 3])
def test_the_static_removal_begins_with_the_module_that_costs_least(rank: int) -> None:
    model, text = routed(stand_in=rank), rows(8, seed=7)
    found = stand_ins(model)
    losses = {site: _loss_without(base(), text, site, found.get(site)) for site in SITES}
    cheapest = min(losses, key=lambda site: losses[site])
    assert cheapest not in (SITES[0], SITES[-1])  # a search that asks for no loss begins there
    saved = savings(model, "modules", 8.5)
    order = sites_of(skipgpt.demo._removal(model, text, saved, 0.5))
    assert order[0] == cheapest
    assert len(set(order)) == 3
