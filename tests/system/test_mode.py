"""Whoever sets a model's mode for a while sets it back, also where a forward fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from runs import rows
from skipgpt.baselines.registry import STATIC
from skipgpt.config import RouterConfig
from skipgpt.evaluation.closeness import as_dense
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.fitting.stand_ins import fit_stand_ins
from skipgpt.model.surgery import add_routers, routed_layers
from skipgpt.system.mode import in_mode
from skipgpt.training.run_stage import _speedup
from tiny import tiny_base


def _dense(model: Any, text: Tensor) -> None:
    with as_dense(model):
        model(text)


WAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "perplexity": perplexity,
    "fit_stand_ins": fit_stand_ins,
    "gradients": lambda model, text: STATIC["shortened-taylor"].order(model, text, 1),
    "speed-up": _speedup,
    "dense": _dense,
}


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "works"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_left_in_its_mode(way: str, training: bool, fails: bool) -> None:
    model = add_routers(tiny_base(), RouterConfig(stand_in=2)).train(training)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    if fails:
        routed_layers(model)[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            WAYS[way](model, rows(3))
    else:
        WAYS[way](model, rows(3))
    assert {module.training for module in model.modules()} == {training}


def test_a_mode_holds_inside_the_block() -> None:
    model = nn.Sequential(nn.Dropout())
    with in_mode(model, training=False):
        assert not model[0].training
    assert model[0].training
