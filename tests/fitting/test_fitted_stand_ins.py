"""Stand-ins that are fitted again solve least squares over the tokens that skip."""

from __future__ import annotations

import copy
from math import inf
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import LAYOUTS, base, families, routed
from runs import rows, tiny_config
from skipgpt.config import FitStage
from skipgpt.cost import savings
from skipgpt.errors import TrainingError
from skipgpt.fitting import stand_ins as fitting
from skipgpt.fitting.fit import fit_model
from skipgpt.fitting.rounds import fit_to_routes
from skipgpt.fitting.stand_ins import fit_stand_ins, fit_to_removal
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import routed_layers, stand_ins
from skipgpt.removal.units import constant_routes
from skipgpt.routing.decision import Site, Threshold
from skipgpt.system.progress import advancing

AT = 0.1


def _seen(model: Any, text: Tensor) -> dict[Site, tuple[np.ndarray, np.ndarray]]:
    """What enters and leaves the MLP of each layer at tokens that skip it, by hooks of our own."""
    entered: dict[int, Tensor] = {}
    left: dict[int, Tensor] = {}
    hooks = []
    for layer in routed_layers(model):
        n = layer.index
        hooks.append(
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args, n=n: entered.update({n: args[0]})
            )
        )
        hooks.append(layer.mlp.register_forward_hook(lambda _, __, out, n=n: left.update({n: out})))
    with (
        torch.no_grad(),
        execution(model, "gated"),
        use_rule(model, Threshold(AT)),
        record_routing(model) as trace,
    ):
        model(input_ids=text)
    for hook in hooks:
        hook.remove()
    found = {}
    for n, stream in entered.items():
        skipped = ~trace.steps[0].decisions[n].mlp.keep
        read = stream * (stream.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        found[Site(n, "mlp")] = (read[skipped].double().numpy(), left[n][skipped].double().numpy())
    return found


def test_it_is_least_squares_over_the_tokens_that_skip() -> None:
    model, text = routed("llama", normalize=True, stand_in=32), rows(24, 16)
    with mock.patch.object(fitting, "NEAR", 1e-9), mock.patch.object(fitting, "FEWEST", 1):
        seen = _seen(model, text)
        fit_stand_ins(model, text, threshold=AT)
    for site, (read, update) in seen.items():
        with_bias = np.hstack([read, np.ones((len(read), 1))])
        best = np.linalg.lstsq(with_bias, update, rcond=None)[0]
        stand_in = stand_ins(model)[site]
        weight = (stand_in.up.weight @ stand_in.down.weight).detach().double().numpy().T
        found = read @ weight + stand_in.up.bias.detach().double().numpy()
        # The map itself may be free where inputs do not vary; what it says is not.
        np.testing.assert_allclose(found, with_bias @ best, atol=2e-3)


def test_a_stand_in_that_too_few_tokens_need_stays() -> None:
    model, text = routed("llama", normalize=True, stand_in=2), rows(4, 16)
    before = {site: each.up.weight.clone() for site, each in stand_ins(model).items()}
    fit_stand_ins(model, text, threshold=-1e9)
    for site, each in stand_ins(model).items():
        assert torch.equal(each.up.weight, before[site])


GONE = [Site(0, "mlp"), Site(1, "attn"), Site(2, "mlp")]


@torch.no_grad()
def _errors(text: Tensor, running: dict[Site, Any], judged: dict[Site, Any]) -> dict[Site, float]:
    """Mean squared errors of stand-ins against their modules, in a Llama of transformers.

    Its streams are those under removal, with the stand-ins that are `running` in place.
    """
    model, errors = base(), {}
    for site in GONE:
        layer, entering = model.model.layers[site.layer], []
        is_attn = site.module == "attn"
        norm = layer.input_layernorm if is_attn else layer.post_attention_layernorm
        norm.register_forward_pre_hook(lambda _, args, entering=entering: entering.append(args[0]))

        def instead(
            _: Any, __: Any, output: Any, site: Any = site, entering: Any = entering
        ) -> Any:
            update = output[0] if isinstance(output, tuple) else output
            errors[site] = (judged[site](entering[-1]) - update).square().mean().item()
            mine = running[site](entering[-1])
            return (mine, *output[1:]) if isinstance(output, tuple) else mine

        (layer.self_attn if is_attn else layer.mlp).register_forward_hook(instead)
    model(input_ids=text, use_cache=False)
    return errors


def test_a_removal_has_stand_ins_that_are_nearer_to_their_modules_in_its_streams() -> None:
    model, text = routed("llama", normalize=True, stand_in=4), rows(24, 16)
    fit_stand_ins(model, text)
    first = copy.deepcopy(stand_ins(model))
    constant_routes(model, [(site,) for site in GONE])
    fit_to_removal(model, text, FitStage(stand_in_tokens=text.numel(), rounds=0))
    found = stand_ins(model)
    before, after = _errors(text, first, first), _errors(text, first, found)
    # The stream that enters the first one is as it was: there is nothing to gain.
    assert after[GONE[0]] == pytest.approx(before[GONE[0]], rel=0.02)
    assert all(after[site] < 0.97 * before[site] for site in GONE[1:]), (before, after)
    for site, each in found.items():
        kept = torch.equal(each.up.weight, first[site].up.weight)
        assert kept == (site not in GONE)


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_removal_is_fitted_to_as_often_as_the_routes_of_stage_fit(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []

    def counted(model: Any, text: Tensor, *args: Any, threshold: float = -inf, **_: Any) -> None:
        asked.append((text.numel(), threshold > -inf))

    for place in ("stand_ins", "fit", "rounds"):
        monkeypatch.setattr(f"skipgpt.fitting.{place}.fit_stand_ins", counted)
    config = tiny_config("default", fit_stage__rounds=rounds, fit_stage__stand_in_tokens=96)
    model, text = routed("llama", normalize=True, stand_in=4), rows(24, 16)
    fit_model(model, text, config, advancing)
    fit_to_routes(model, text, config, savings(model, "modules", 8.5), advancing)
    of_fit = asked.copy()
    asked.clear()
    fit_to_removal(model, text, config.fit_stage)
    assert of_fit == [(96, False), *asked]
    assert asked == [(96, True)] * (rounds + 1)


@pytest.mark.parametrize("threshold", [-inf, 0.0])
def test_a_module_with_outputs_that_are_too_large_is_named(threshold: float) -> None:
    """Its squares are infinite; RMSNorm makes zeros of it, and the loss stays finite."""
    model, text = routed("llama", normalize=True, stand_in=2), rows(4, 16)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 1e20
        with execution(model, "dense"):
            assert model(input_ids=text, labels=text).loss.isfinite()
    with pytest.raises(TrainingError, match=r"of 64 squared .* of layer 1, mlp.*weights again"):
        fit_stand_ins(model, text, threshold=threshold)


@families(LAYOUTS)
def test_it_runs_in_every_layout(family: str) -> None:
    model = routed(family, normalize=True, stand_in=2)
    steps: list[tuple[int, int]] = []
    fit_stand_ins(model, rows(6, 11), threshold=0.0, on_step=lambda *step: steps.append(step))
    assert steps[-1] == (1, 1)
    assert all(torch.isfinite(p).all() for s in stand_ins(model).values() for p in s.parameters())


@pytest.mark.parametrize("threshold", [float("-inf"), 0.0])
def test_the_model_trains_on_as_before(threshold: float) -> None:
    model = routed("llama", stand_in=2).train()
    fit_stand_ins(model, rows(4, 16), threshold=threshold)
    assert model.training
