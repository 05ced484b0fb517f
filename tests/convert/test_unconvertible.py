"""Files that do not fit are refused with all that is wrong."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from official import (
    HIDDEN,
    LAYERS,
    full_state,
    linear_routers,
    lora,
    prefixed,
    refusal,
    two_layer_routers,
)
from skipgpt.convert import read_authors_file
from skipgpt.errors import CheckpointError
from tiny import tiny_base

# PEFT 0.20 asks transformers 5 for a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


class Attack:
    """Unpickled by an ordinary reader, creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def as_zip(value, path):
    torch.save(value, path)


def as_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("save", [as_zip, as_legacy, as_pickle])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(save, base_folder, tmp_path):
    path, target = tmp_path / "router.pth", tmp_path / "attacked"
    save(linear_routers() | {"note": Attack(target)}, path)
    message = refusal(path, base_folder, tmp_path / "out")
    assert not target.exists()
    assert "more than tensors" in message
    assert "not executed" in message
    assert "weights_only" not in message


def test_a_damaged_or_absent_file_is_named(written, base_folder, tmp_path):
    path = written(linear_routers())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], b"", b"<!DOCTYPE html>"):
        path.write_bytes(damaged)
        assert f"reading the authors' file {path}" in refusal(path, base_folder, tmp_path / "out")
    for absent in (tmp_path / "absent.pth", tmp_path / "absent.safetensors"):
        assert "cannot be read" in refusal(absent, base_folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([torch.ones(2)], "got a list"),
        ({}, "got an empty dict"),
        ({"a": torch.ones(2), "step": 3}, "1 of 2 entries that are no tensors, first 'step'"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(value, found, written):
    with pytest.raises(CheckpointError, match=found):
        read_authors_file(written(value))


def test_all_wrong_keys_are_in_one_message_in_the_spelling_of_the_file(
    written, base_folder, tmp_path
):
    file = prefixed("base_model.model.", linear_routers() | lora())
    at = "base_model.model.model.layers."
    del file[f"{at}1.router_mlp.weight_predictor.bias"]
    del file[f"{at}2.block.mlp.gate_proj.lora_B.default.weight"]
    file[f"{at}0.router_extra.weight"] = torch.ones(2)
    file[f"{at}0.router_attention.weight_predictor.weight"] = torch.ones(2, 31)
    file[f"{at}1.block.self_attn.q_proj.lora_A.default.weight"] = torch.ones(3, 32)
    file[f"{at}2.router_attention.weight_predictor.bias"] = torch.tensor([0.0, float("nan")])
    file["model.layers.2.router_mlp.weight_predictor.bias"] = torch.ones(2)
    message = refusal(written(file), base_folder, tmp_path / "out")
    for part in (
        f"missing {at}1.router_mlp.weight_predictor.bias",
        f"missing {at}2.block.mlp.gate_proj.lora_B.default.weight",
        f"unexpected {at}0.router_extra.weight",
        f"{at}0.router_attention.weight_predictor.weight of shape [2, 31], not [2, 32]",
        f"{at}1.block.self_attn.q_proj.lora_A.default.weight of shape [3, 32], not [4, 32]",
        f"{at}2.router_attention.weight_predictor.bias with values that are not finite",
        "unexpected model.layers.2.router_mlp.weight_predictor.bias",
    ):
        assert part in message
    assert message.count(";") == 7


def test_one_kind_of_router_alone_is_refused(written, base_folder, tmp_path):
    file = {key: tensor for key, tensor in linear_routers().items() if "attention" in key}
    message = refusal(written(file), base_folder, tmp_path / "out")
    assert message.count("missing model.layers.") == 2 * LAYERS


def test_heads_cannot_be_mixed(written, base_folder, tmp_path):
    file = two_layer_routers()
    del file["model.layers.2.router_mlp.hidden_layer.weight"]
    del file["model.layers.2.router_mlp.hidden_layer.bias"]
    file["model.layers.2.router_mlp.weight_predictor.weight"] = torch.ones(2, HIDDEN)
    message = refusal(written(file), base_folder, tmp_path / "out")
    assert "missing model.layers.2.router_mlp.hidden_layer.weight" in message
    assert "router_mlp.weight_predictor.weight of shape [2, 32], not [2, 8]" in message


def test_every_second_layer_missing_lists_them(written, base_folder, tmp_path):
    file = {key: tensor for key, tensor in linear_routers().items() if ".1." not in key}
    message = refusal(written(file), base_folder, tmp_path / "out")
    assert message.count("missing model.layers.1.router_") == 4


@pytest.mark.parametrize(("layers", "hidden"), [(2, 32), (5, 32), (3, 48), (32, 4096)])
def test_a_file_for_another_base_says_both_sizes(layers, hidden, written, base_folder, tmp_path):
    path = written(linear_routers(layers, hidden))
    message = refusal(path, base_folder, tmp_path / "out")
    assert f"got routers for {layers} layers of hidden size {hidden}" in message
    assert "expected 3 layers of hidden size 32" in message
    assert str(base_folder) in message
    assert len(message) < 500


def test_a_file_without_routers_is_refused(written, base_folder, tmp_path):
    message = refusal(written(full_state(tiny_base())), base_folder, tmp_path / "out")
    assert "no router" in message
    assert "router_attention.weight_predictor.weight" in message


def test_base_weights_of_another_model_are_refused(written, base_folder, tmp_path):
    file = linear_routers() | full_state(tiny_base(seed=1))
    message = refusal(written(file), base_folder, tmp_path / "out")
    # The norms of a fresh model are all ones, whatever the seed.
    assert "23 of 30 base weights in the file that differ" in message
    assert "model.layers.0.block.self_attn.q_proj.weight" in message
    assert str(base_folder) in message


def test_a_single_changed_base_weight_is_found(written, base_folder, tmp_path):
    file = linear_routers() | full_state(tiny_base())
    file["model.layers.2.block.mlp.down_proj.weight"][5, 5] *= 1.05
    message = refusal(written(file), base_folder, tmp_path / "out")
    assert "1 of 30" in message
    assert "model.layers.2.block.mlp.down_proj.weight" in message
