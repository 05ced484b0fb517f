"""The demo, made short: the same chain with a few steps and little text."""

from __future__ import annotations

import functools
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
from short_demo import short_demo, shorten, write_small_nano
from skipgpt.checkpoint.folder import read_info
from skipgpt.cost import savings
from skipgpt.model.surgery import stand_ins
from skipgpt.removal.units import sites_of
from skipgpt.routing.decision import Site


def test_the_command_and_a_call_with_one_seed_give_the_same_numbers_and_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_small_nano(tmp_path)
    measured = mock.Mock(wraps=skipgpt.demo.perplexity)
    monkeypatch.setattr(skipgpt.demo, "perplexity", measured)
    with short_demo(small):
        first = skipgpt.demo.demo(tmp_path / "first", seed=3, sparsity=0.1)
    second = ("demo", "--out", tmp_path / "second", "--seed", 3, "--sparsity", 0.1)
    ended = skipgpt_command(*second, before=functools.partial(shorten, small))
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


def test_the_demo_runs_on_the_embedded_model(tmp_path: Path) -> None:
    ended = skipgpt_command("demo", "--out", tmp_path / "out", "--sparsity", 0.1, before=shorten)
    assert ended.status == 0, ended.stderr
    rows = json.loads((tmp_path / "out" / "demo.json").read_text())["rows"]
    assert all(row["tokens"] <= 256 for row in rows.values())  # it was short, as it was told
    # What it was trained on, so far better than chance among 4,096 tokens, which is 8.3 nats.
    assert all(row["nll_per_token"] < 4.5 for row in rows.values()), rows
    assert (tmp_path / "out" / "report.html").exists()


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
