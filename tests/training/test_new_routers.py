"""Where training begins: fitted stand-ins, and routers at random or at a constant margin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cases import CLOSE, SITES, base, routed
from removals import static_loss
from runs import metrics, rows, run, stage_trainer, stopping_at, tiny_config, weights
from skipgpt.config import TrainConfig
from skipgpt.errors import StoppedError
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.state import routing_state
from skipgpt.model.surgery import router_state_dict, routers, stand_ins
from skipgpt.routing.decision import (
    DecisionRule,
    GumbelSample,
    ModuleDecision,
    Site,
    StraightThrough,
    Threshold,
)
from skipgpt.routing.stand_in import Moments, StandIn, fit
from skipgpt.training.run_start import start_routers

RANK = 3


def settings(start: str = "keep", **changes: object) -> TrainConfig:
    return tiny_config(router_stage__start=start, router_stage__fit_tokens=96, **changes)


# Stand-ins are fitted.

# Of attention and of the MLP: what the stream enters, and what leaves for the residual add.
ENDS = {
    "llama": (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")),
    "gemma3_text": (
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    "cohere2": (("input_layernorm", "self_attn"), ("input_layernorm", "mlp")),
    "mixtral": (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")),
}


@torch.no_grad()
def fitted_by_hooks(family: str, text: Tensor) -> dict[Site, StandIn]:
    """From what enters and leaves the modules of the base model, which knows of no routers."""
    model, seen = base(family), dict[tuple[int, str, str], Tensor]()

    def watch(n: int, name: str) -> None:
        def keep(_: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            if args:
                seen[n, name, "in"] = args[0]
            seen[n, name, "out"] = output[0] if isinstance(output, tuple) else output

        model.model.layers[n].get_submodule(name).register_forward_hook(keep)

    for n in range(3):
        for name in {end for ends in ENDS[family] for end in ends}:
            watch(n, name)
    model(input_ids=text, use_cache=False)
    made = {}
    for n in range(3):
        for module, (entered, left) in zip(("attn", "mlp"), ENDS[family], strict=True):
            moments = Moments(32)
            moments.add(seen[n, entered, "in"], seen[n, left, "out"])
            made[Site(n, module)] = StandIn(32, RANK)
            fit(made[Site(n, module)], moments)
    return made


@pytest.mark.parametrize("family", ENDS)
def test_stand_ins_are_fitted_to_what_modules_add_in_the_dense_model(family: str) -> None:
    model, text = routed(family, stand_in=RANK), rows(12)
    fit_stand_ins(model, text)
    expected, entering = fitted_by_hooks(family, text), torch.randn(2, 7, 32)
    assert stand_ins(model).keys() == expected.keys()
    for site, stand_in in stand_ins(model).items():
        # Batches of 8 rows in one case, all rows in the other; ridge solutions of 32 unknowns.
        torch.testing.assert_close(
            stand_in(entering), expected[site](entering), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize(
    "router",
    [{"kv": "skip"}, {"decides": "layer"}, {"decides": "sequence"}, {"input": "module_input"}],
    ids=str,
)
def test_the_fit_is_the_same_whatever_the_routers_are(router: dict[str, str]) -> None:
    entering, text, models = torch.randn(2, 7, 32), rows(8), []
    for options in ({}, router):
        models.append(routed(stand_in=RANK, **options))
        fit_stand_ins(models[-1], text)
    plain, other = map(stand_ins, models)
    for site in plain:
        torch.testing.assert_close(other[site](entering), plain[site](entering), **CLOSE)


def test_the_fit_is_the_same_in_one_pass_over_the_text_or_in_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entering, text, models = torch.randn(2, 7, 32), rows(8), []
    for room in (2**31, 1):
        monkeypatch.setattr("skipgpt.fitting.stand_ins.SUMS_BYTES", room)
        models.append(routed(stand_in=RANK))
        fit_stand_ins(models[-1], text)
    at_once, one_by_one = map(stand_ins, models)
    for site in at_once:
        torch.testing.assert_close(
            one_by_one[site](entering), at_once[site](entering), rtol=0, atol=0
        )


def test_fitting_changes_nothing_but_stand_ins() -> None:
    model = routed(stand_in=RANK).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    fit_stand_ins(model, rows(8))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("_stand_in." not in name), name
    assert routing_state(model).rule == Threshold()
    assert routing_state(model).execution == "sparse"
    assert model.training
    after = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert after == hooks


def test_fitted_stand_ins_make_skipping_cheaper() -> None:
    text = rows(64)
    text[:, 1:] = text[:, :1]  # a text that repeats itself can be predicted
    model = routed(stand_in=16)
    dense = static_loss(model, text, [])
    fit_stand_ins(model, text)
    bare = routed()
    costs, bare_costs = (
        [abs(static_loss(each, text, [site]) - dense) for site in SITES] for each in (model, bare)
    )
    assert sum(costs) < 0.5 * sum(bare_costs)


# Routers start.


def test_a_random_start_leaves_routers_as_they_were() -> None:
    model = routed()
    before = {name: tensor.clone() for name, tensor in router_state_dict(model).items()}
    start_routers(model, settings("random"), rows(8))
    assert all(torch.equal(t, before[name]) for name, t in router_state_dict(model).items())


@pytest.mark.parametrize("margin", [1.0, 3.0])
def test_a_start_from_keep_keeps_everything_by_this_margin(margin: float) -> None:
    model = routed()
    config = settings("keep", router_stage__start_margin=margin)
    start_routers(model, config, rows(8))
    assert _margins(model) == dict.fromkeys(SITES, margin)


def _margins(model: nn.Module) -> dict[Site, float]:
    """Of constant routers, whatever they read."""
    entering = torch.randn(5, 32)
    found = {site: router.margin(entering).unique() for site, router in routers(model).items()}
    return {site: margin.item() for site, margin in found.items()}


# Runs.


def test_an_interrupted_run_with_stand_ins_ends_where_a_straight_one_does(
    base_folder: Path, tmp_path: Path
) -> None:
    config = settings(router__stand_in=RANK, save_every=2)
    run(base_folder, tmp_path / "straight", config)
    with stopping_at(3), pytest.raises(StoppedError):
        run(base_folder, tmp_path / "stopped", config)
    run(base_folder, tmp_path / "stopped", config, resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")


def test_stand_ins_train_at_a_rate_of_their_own(tmp_path: Path) -> None:
    config = settings(router_stage__learning_rate=0.5, router_stage__stand_in_rate=0.25)
    trainer = stage_trainer(routed(stand_in=RANK), "joint", config, rows(), tmp_path)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    seen = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for p in group["params"]
    }
    for name, (rate, decay) in seen.items():
        kind = "stand_in" if "_stand_in." in name else "lora" if "lora_" in name else "router"
        assert rate == {"stand_in": 0.25, "router": 0.5, "lora": 2e-4}[kind], name
        assert (decay == 0) == name.endswith("bias"), name
    assert len(seen) == 6 * (2 + 3) + 18


def test_a_rule_of_ones_own_decides_while_routers_train(base_folder: Path, tmp_path: Path) -> None:
    shares: list[float] = []

    def one_mlp_skipped(margin: Tensor, site: Site) -> ModuleDecision:
        soft = torch.sigmoid(margin)
        keep = torch.full_like(soft, site != Site(1, "mlp"))
        return ModuleDecision(keep.bool(), keep + soft - soft.detach(), margin)

    def rule(share: float) -> DecisionRule:
        shares.append(share)
        return one_mlp_skipped if share < 0.5 else StraightThrough()

    config = tiny_config(stages="router,lora", lora_stage__steps=2)
    run(base_folder, tmp_path / "out", config, rule=rule)
    assert sorted(set(shares)) == [step / 6 for step in range(6)]
    lines = [line for line in metrics(tmp_path / "out") if line["stage"] == "router"]
    assert [line["sparsity"] == pytest.approx(1 / 6) for line in lines[:3]] == [True] * 3
    assert lines[3]["sparsity"] != pytest.approx(1 / 6)


def test_the_rule_of_the_paper_may_be_given_by_hand(base_folder: Path, tmp_path: Path) -> None:
    run(base_folder, tmp_path / "none")
    run(base_folder, tmp_path / "given", rule=lambda share: GumbelSample(5 - 4 * share))
    run(base_folder, tmp_path / "other", rule=lambda _: GumbelSample(1.0))
    assert weights(tmp_path / "given") == weights(tmp_path / "none")
    assert weights(tmp_path / "other") != weights(tmp_path / "none")
