"""The authors' files become checkpoints that compute what the authors' model computes."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from authors_reference import authors_logits
from conftest import byte_tokenizer, tiny_base
from skipgpt import execution, record_routing
from skipgpt.checkpoint import loading
from skipgpt.checkpoint.folder import read_info
from skipgpt.convert import convert, read_authors_file, router_keys
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.model.loading.folder import CONFIG

# PEFT 0.20 asks transformers 5 for a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

LAYERS, HIDDEN, RANK = 3, 32, 4
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj")
TOKENS = torch.randint(1, 257, (2, 7), generator=torch.Generator().manual_seed(1))


def linear_routers(layers: int = LAYERS, hidden: int = HIDDEN) -> dict[str, torch.Tensor]:
    """Form 1: what the fork publishes."""
    draw = torch.Generator().manual_seed(2)
    file = {}
    for n in range(layers):
        for module in ("attention", "mlp"):
            router = f"model.layers.{n}.router_{module}.weight_predictor."
            file[router + "weight"] = torch.randn(2, hidden, generator=draw)
            # Of the size of a fresh model's hidden states, so that tokens really differ.
            file[router + "bias"] = 0.05 * torch.randn(2, generator=draw)
    return file


def two_layer_routers() -> dict[str, torch.Tensor]:
    """Form 2: what the training code writes."""
    file = {}
    for key in linear_routers():
        if key.endswith("weight"):
            router = key.removesuffix("weight_predictor.weight")
            file[router + "hidden_layer.weight"] = torch.randn(HIDDEN // 4, HIDDEN)
            file[router + "hidden_layer.bias"] = 0.05 * torch.randn(HIDDEN // 4)
            file[router + "weight_predictor.weight"] = torch.randn(2, HIDDEN // 4)
            file[router + "weight_predictor.bias"] = 0.05 * torch.randn(2)
    return file


def lora(adapter: str = ".default") -> dict[str, torch.Tensor]:
    """The LoRA tensors of form 3, large enough to matter."""
    weights = tiny_base().state_dict()
    return {
        f"model.layers.{n}.block.{module}.lora_{side}{adapter}.weight": 0.1 * torch.randn(*shape)
        for n in range(LAYERS)
        for module in TARGETS
        for rows, columns in [weights[f"model.layers.{n}.{module}.weight"].shape]
        for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK)))
    }


def full_state(base: torch.nn.Module, wrapped: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Form 4: the base's own weights, as the authors' wrapper and PEFT rename them."""
    file = {}
    for key, tensor in base.state_dict().items():
        if any(module in key for module in wrapped):
            key = key.replace(".weight", ".base_layer.weight")
        parts = key.split(".")
        block = [*parts[:3], "block", *parts[3:]] if parts[1] == "layers" else parts
        file[".".join(block)] = tensor.clone()
    return file


def prefixed(prefix: str, file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in file.items()}


FORMS = {
    "linear head": linear_routers,
    "two-layer head": two_layer_routers,
    "after LoRA": lambda: prefixed("base_model.model.", linear_routers() | lora()),
    "LoRA as PEFT saves it": lambda: prefixed("base_model.model.", linear_routers() | lora("")),
    "full state dict": lambda: two_layer_routers() | full_state(tiny_base()),
    "full state dict after LoRA": lambda: prefixed(
        "base_model.model.", two_layer_routers() | lora() | full_state(tiny_base(), TARGETS)
    ),
    "full state dict in bfloat16": lambda: (
        linear_routers() | {k: v.bfloat16() for k, v in full_state(tiny_base()).items()}
    ),
    "full state dict in float16": lambda: (
        linear_routers() | {k: v.half() for k, v in full_state(tiny_base()).items()}
    ),
    "distributed and compiled": lambda: prefixed(
        "module._orig_mod.base_model.model.", linear_routers() | lora()
    ),
}


@pytest.fixture
def written(tmp_path):
    """Saves tensors as the authors do and returns the path."""

    def write(file, name="router.pth"):
        torch.save(file, tmp_path / name)
        return tmp_path / name

    return write


def refusal(path, base_folder, out, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert(path, str(base_folder), out, **options)
    assert not (out / CONFIG).exists()
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["gated", "sparse"])
def test_a_converted_checkpoint_gives_the_reference_logits(
    form, kind, written, base_folder, tmp_path
):
    file = FORMS[form]()
    info = convert(written(file), str(base_folder), tmp_path / "out")
    model, _ = loading.load(tmp_path / "out")

    base = tiny_base()
    with torch.no_grad(), execution(model, kind), record_routing(model) as trace:
        logits = model(TOKENS).logits
    expected = authors_logits(base.state_dict(), file, TOKENS, config=base.config)
    # Float32 sums in another order; a wrong decision moves logits by 1e-3 and more.
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert 0.2 < trace.sparsity() < 0.8
    assert info.recipe == "paper"
    assert info.curve is None
    assert info.stages == (("router", "lora") if any("lora_" in k for k in file) else ("router",))
    assert info.router.head == ("mlp" if any("hidden_layer" in k for k in file) else "linear")
    assert read_info(tmp_path / "out") == info


def test_lora_may_lie_in_a_second_file_and_its_alpha_is_given(written, base_folder, tmp_path):
    routers, updates = linear_routers(), prefixed("base_model.model.", lora())
    path, second = written(routers), written(updates, "lora.pth")
    convert(path, str(base_folder), tmp_path / "out", lora=second, lora_alpha=8)
    model, _ = loading.load(tmp_path / "out", merge=True)

    base = tiny_base()
    with torch.no_grad():
        logits = model(TOKENS).logits
    expected = authors_logits(
        base.state_dict(), routers | updates, TOKENS, config=base.config, alpha=8
    )
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert "lora=" in refusal(second, base_folder, tmp_path / "other")
    repeated = refusal(path, base_folder, tmp_path / "other", lora=path)
    assert repeated.count("unexpected model.layers.") == len(routers)


def test_a_loaded_base_model_is_used_as_it_is(written, base_folder, tmp_path):
    base = tiny_base()
    convert(written(linear_routers()), str(base_folder), tmp_path / "out", base_model=base)
    loaded, _ = loading.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(base(TOKENS).logits, loaded(TOKENS).logits)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_nested_state_dict_is_unwrapped(wrapper, written):
    file = linear_routers()
    assert read_authors_file(written({wrapper: file, "step": 3})).keys() == file.keys()


def test_safetensors_and_old_torch_files_are_read(tmp_path):
    file = linear_routers()
    save_file(file, tmp_path / "router.safetensors")
    torch.save(file, tmp_path / "router.bin", _use_new_zipfile_serialization=False)
    for name in ("router.safetensors", "router.bin"):
        read = read_authors_file(tmp_path / name)
        assert all(torch.equal(read[key], file[key]) for key in file | read)


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


def test_constants_of_older_transformers_are_no_weights(written, base_folder, tmp_path):
    file = linear_routers() | {"model.layers.0.block.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    convert(written(file), str(base_folder), tmp_path / "out")


def test_a_checkpoint_is_replaced_only_when_asked(written, base_folder, tmp_path):
    path, out = written(linear_routers()), tmp_path / "out"
    convert(path, str(base_folder), out)
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        convert(path, str(base_folder), out)
    convert(written(two_layer_routers()), str(base_folder), out, overwrite=True)
    assert loading.load(out)[0].model.layers[0].routing.config.head == "mlp"


def test_an_impossible_target_is_refused(written, base_folder, tmp_path):
    with pytest.raises(ConfigError, match="target_sparsity"):
        convert(written(linear_routers()), str(base_folder), tmp_path / "out", target_sparsity=1.5)


@pytest.fixture
def official_file(data_folder):
    return data_folder / "official-routers" / "llama-3.1-8b-stage1-router.pth"


def test_the_official_file_holds_every_key_of_an_8b_model(official_file):
    file, wanted = read_authors_file(official_file), router_keys("linear", 32, 4096)
    assert len(file) == 128
    assert {key: tuple(tensor.shape) for key, tensor in file.items()} == {
        key: shape for key, (_, shape) in wanted.items()
    }
    assert wanted["model.layers.31.router_attention.weight_predictor.bias"][0] == (
        "layers.31.attn_router.bias"
    )


def test_the_official_routers_give_the_reference_logits(official_file, tmp_path):
    base = tiny_base(
        hidden_size=4096,
        num_hidden_layers=32,
        intermediate_size=8,
        num_attention_heads=32,
        num_key_value_heads=1,
        head_dim=2,
    )
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    convert(official_file, str(tmp_path / "base"), tmp_path / "out")
    model, _ = loading.load(tmp_path / "out")
    with torch.no_grad(), record_routing(model) as trace:
        logits = model(TOKENS).logits
    expected = authors_logits(
        base.state_dict(), read_authors_file(official_file), TOKENS, config=base.config
    )
    # The sums run over 4096 terms and 32 layers here.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert 0 < trace.sparsity() < 1
