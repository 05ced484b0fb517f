"""Stand-ins that are fitted again solve least squares over the tokens that skip."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import LAYOUTS, families, routed
from runs import rows
from skipgpt.fitting import stand_ins as fitting
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import routed_layers, stand_ins
from skipgpt.routing.decision import Site, Threshold

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
