"""Checkpoints of the authors become ours."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from authors_reference import authors_logits
from official import TARGETS, full_state, linear_routers, lora, prefixed, refusal, two_layer_routers
from skipgpt import execution, record_routing
from skipgpt.checkpoint import loading
from skipgpt.checkpoint.folder import read_info
from skipgpt.convert import convert, read_authors_file, router_keys
from skipgpt.errors import CheckpointError, ConfigError
from tiny import byte_tokenizer, tiny_base

# PEFT 0.20 asks transformers 5 for a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TOKENS = torch.randint(1, 257, (2, 7), generator=torch.Generator().manual_seed(1))


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
