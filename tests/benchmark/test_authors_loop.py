"""The account of the authors' training step computes what ours computes, given routes and noise."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark_scripts import FOLDER, imported
from command import script
from runs import rows, stage_trainer, tiny_config
from skipgpt.config import TrainConfig
from skipgpt.model.lora import with_lora
from skipgpt.model.surgery import add_routers, routed_layers, routers, train_only
from skipgpt.routing.decision import Forced, ModuleDecision, Site
from skipgpt.training.loop.trainer import RoutingTrainer
from tiny import tiny_base

IDS = rows(2)
SITES = [Site(layer, module) for layer in range(3) for module in ("attn", "mlp")]
TARGET = 0.4


@pytest.fixture
def loop() -> ModuleType:
    return imported("authors_loop")


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> dict[Site, Tensor]:
    """Gumbel noise [B, T, 2] of every site, which torch's own function draws in this order."""
    drawn = {site: -torch.empty(*IDS.shape, 2).exponential_().log() for site in SITES}
    left = iter(drawn.values())

    def replayed(logits: Tensor, tau: float, hard: bool) -> Tensor:
        assert hard
        soft = ((logits + next(left)) / tau).softmax(-1)
        taken = functional.one_hot(soft.argmax(-1), 2).to(soft.dtype)
        return taken - soft.detach() + soft

    monkeypatch.setattr(functional, "gumbel_softmax", replayed)
    return drawn


def config(loop: ModuleType) -> TrainConfig:
    return tiny_config(
        "paper",
        target_sparsity=TARGET,
        router_stage__alpha=loop.BUDGET_WEIGHT,
        lora_stage__dropout=0.0,
    )


def with_routers_of(model: nn.Module, wrapped: nn.Module) -> nn.Module:
    """The authors' model with the weights of our routers."""
    for mine, other in zip(routed_layers(model), wrapped.model.layers, strict=True):
        for name in ("attn_router", "mlp_router"):
            getattr(other, name).load_state_dict(getattr(mine, name).state_dict())
    return wrapped


def loss_of(trainer: RoutingTrainer) -> Tensor:
    samples, items = trainer.get_batch_samples(
        iter([{"input_ids": IDS, "labels": IDS}]), 1, IDS.device
    )
    return trainer.training_step(trainer.model, samples[0], items)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By names that neither PEFT's wrapper nor the authors' is in."""
    return {
        name.removeprefix("base_model.model.").replace(".block.", "."): p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def compare(ours: nn.Module, theirs: nn.Module) -> None:
    expected, got = gradients(ours), gradients(theirs)
    assert got.keys() == expected.keys()
    assert all(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        # Both add up the same terms in another order.
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_loss_and_gradients_of_routers_are_ours_given_the_noise(
    loop: ModuleType, noise: dict[Site, Tensor], tmp_path: Path
) -> None:
    def rule(margin: Tensor, site: Site) -> ModuleDecision:
        drawn = noise[site]
        soft = ((margin + drawn[..., 0] - drawn[..., 1]) / 1.0).sigmoid()
        keep = soft > 0.5
        return ModuleDecision(keep, keep + soft - soft.detach(), margin)

    model = add_routers(tiny_base())
    wrapped = with_routers_of(model, loop.with_authors_layers(tiny_base()))
    trainer = stage_trainer(model, "router", config(loop), IDS, tmp_path, lambda _: rule)
    train_only(wrapped, "router")
    expected = loss_of(trainer)
    loss = loop.authors_loss(wrapped, IDS, TARGET)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0.0)
    compare(trainer.model, wrapped)
    skipped = {
        s: drawn.new_tensor(wrapped.model.layers[s.layer].on_host[s.module])
        for s, drawn in noise.items()
    }
    assert 0 < sum(each.sum() for each in skipped.values()) < 6 * IDS.numel()


def test_loss_and_gradients_of_healing_are_ours_given_the_routes(
    loop: ModuleType, noise: dict[Site, Tensor], tmp_path: Path
) -> None:
    model = add_routers(tiny_base())
    for router in routers(model).values():  # so that noise alone decides
        nn.init.zeros_(router.weight)
    wrapped = with_routers_of(model, loop.with_authors_layers(tiny_base()))
    routes = Forced({site: drawn[..., 0] > drawn[..., 1] for site, drawn in noise.items()})
    trainer = stage_trainer(model, "lora", config(loop), IDS, tmp_path)
    routed_layers(model)[0].routing.rule = routes
    wrapped = with_lora(wrapped, config(loop).lora_stage)
    train_only(wrapped, "lora")
    made = {n.replace(".block.", "."): p for n, p in wrapped.named_parameters() if "lora_" in n}
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:  # as drawn, half of them are zero and the rest differ
            nn.init.normal_(parameter, std=0.1)
            made[name].data.copy_(parameter.data)
    expected = loss_of(trainer)
    loss = loop.authors_loss(wrapped, IDS, TARGET)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0.0)
    compare(trainer.model, wrapped)


@pytest.mark.parametrize("kind", ["router", "lora"])
def test_a_step_moves_what_trains_and_nothing_else(loop: ModuleType, kind: str) -> None:
    model = loop.with_authors_layers(tiny_base())
    model = with_lora(model, tiny_config().lora_stage) if kind == "lora" else model
    train_only(model, kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = loop.authors_step(model, IDS, TARGET)
    assert step().isfinite()
    step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(("_router." if kind == "router" else "lora_") in name for name in moved)


def test_the_benchmark_writes_both_stages(tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    size = ("--shape", "llama-tiny", "--tokens", 8, "--repeats", 2)
    finished = script(FOLDER / "training.py", *size, "--out", out)
    assert finished.status == 0, finished.stderr
    result = json.loads(out.read_text())
    assert {"date", "device", "torch", "dtype", "sparsity"} <= result.keys()
    assert [(row["stage"], row["loop"]) for row in result["rows"]] == [
        ("router", "authors"),
        ("router", "skipgpt gated"),
        ("lora", "authors"),
        ("lora", "skipgpt sparse"),
        ("lora", "skipgpt gated"),
    ]
    assert result["rows"][0]["time_over_authors"] == 1
    # Sparse stores nothing of what it skips.
    stored = {row["loop"]: row["stored_bytes"] for row in result["rows"][2:]}
    assert stored["skipgpt sparse"] < stored["authors"]
