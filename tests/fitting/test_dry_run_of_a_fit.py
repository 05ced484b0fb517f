"""A dry run of stage `fit` tells what its passes hold, on the device and in the machine."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import transformers

import zoo
from runs import rows, tiny_config
from skipgpt.config import RouterConfig, recipe
from skipgpt.errors import ConfigError
from skipgpt.fitting.costs import measure_costs
from skipgpt.model.surgery import add_routers
from skipgpt.training.dry_run import DryRun, dry_run

LAYERS, WIDTH, TOKENS = 5, 48, 4096


def _base() -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=257,
    )


def test_a_fit_trains_nothing_and_holds_activations_of_one_batch() -> None:
    config = recipe("default", stages=("fit",))
    found = dry_run(
        zoo.config("llama"), config, layout="single", processes=1, dtype=torch.float32, device="cpu"
    )
    (stage,) = found.stages
    assert (stage.stage, stage.held.trained, stage.rows) == ("fit", 0, config.fit_stage.batch_size)
    assert stage.memory.gradients == stage.memory.optimizer == 0
    assert stage.memory.activations > 0


def _host(**changes: Any) -> tuple[DryRun, Any]:
    config = tiny_config("default", stages="fit,router", fit_stage__tokens=TOKENS, **changes)
    found = dry_run(
        _base(), config, layout="single", processes=1, dtype=torch.float32, device="cuda"
    )
    return found, found.to_dict()["stages"][0]["host_memory"]


@pytest.mark.parametrize(
    ("router", "copies", "size"),
    [
        ({"normalize": True}, 1, 2),
        ({"normalize": False}, 1, 4),
        ({"normalize": True, "input": "module_input"}, 2, 2),
    ],
)
def test_what_a_fit_keeps_in_the_machine_is_of_the_size_of_the_model(
    router: dict[str, Any], copies: int, size: int
) -> None:
    changes = {f"router__{name}": value for name, value in router.items()}
    found, host = _host(**changes)
    # Inputs of each layer; for two modules of each layer two D x D sums in float64.
    inputs, sums = LAYERS * copies * TOKENS * WIDTH * size, LAYERS * 2 * 2 * WIDTH * WIDTH * 8
    assert host == {"router_inputs": inputs, "stand_in_sums": sums, "total": inputs}
    assert f"{inputs / 1e6:.2f} MB in the memory of the machine" in str(found)
    assert found.stages[1].host_memory.total == 0
    assert _host(**changes | {"router__stand_in": 0})[1]["stand_in_sums"] == 0


def test_a_fit_whose_inputs_exceed_the_limit_keeps_those_of_the_layers_that_fit() -> None:
    each, sums = TOKENS * WIDTH * 2, 2 * 2 * WIDTH * WIDTH * 8
    with (
        mock.patch("skipgpt.fitting.fit.INPUT_BYTES", 2 * each + 1),
        mock.patch("skipgpt.fitting.stand_ins.SUMS_BYTES", 3 * sums),
    ):
        host = _host()[1]
    assert (host["router_inputs"], host["stand_in_sums"]) == (2 * each, 3 * sums)


def test_a_fit_keeps_the_inputs_that_its_dry_run_counts() -> None:
    model = add_routers(
        transformers.LlamaForCausalLM(_base()), RouterConfig(normalize=True, stand_in=4)
    )
    found = measure_costs(model, rows(256, 16), batch_size=32)
    kept = {each.read.data_ptr(): each.read.nbytes for each in found.values()}
    assert sum(kept.values()) == _host()[1]["router_inputs"]


def test_a_fit_in_several_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"planning stage fit: got 2 processes.*--stages fit"):
        dry_run(
            zoo.config("llama"),
            recipe("default"),
            layout="ddp",
            processes=2,
            dtype=torch.float32,
            device="cpu",
        )
