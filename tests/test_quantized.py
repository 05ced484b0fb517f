"""Bases in 8 and 4 bits: as exact, as trainable and as well guarded as any other."""

from __future__ import annotations

import copy
import functools
import json
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import skipgpt
from command import skipgpt as command
from conftest import byte_tokenizer, tiny_base
from runs import ARGUMENTS, logits, rows, run, stopping_at, tiny_config, weights, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.config import LoraStage
from skipgpt.cost import layer_costs, sparsities
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    StoppedError,
    UnsupportedModelError,
)
from skipgpt.model.base import load_base
from skipgpt.model.loading.bitsandbytes import KINDS, quantization_of
from skipgpt.model.loading.fingerprint import fingerprint, weights_digest
from skipgpt.model.lora import with_lora
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers, routers, train_only
from skipgpt.routing.decision import GumbelSample, Site

# Every layer has a multiple of 64 inputs, which 4-bit weights on a CPU need.
SIZES: dict[str, object] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
CLASSES = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
LINEARS = 3 * 7
# Tokens are multiplied row by row, so only the order of sums in attention may differ.
CLOSE = {"rtol": 0.0, "atol": 1e-5}

every_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def _lively() -> nn.Module:
    return tiny_base(initializer_range=0.15, **SIZES)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama that can be held in 4 bits, in which every weight matters."""
    return _save(_lively(), tmp_path / "base")


def _save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _routed(base: Path, kind: str, **options: Any) -> nn.Module:
    model, _ = load_base(str(base), quantize=kind, **options)
    torch.manual_seed(1)
    return add_routers(model).eval()


def _linears(model: nn.Module, kind: str) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if type(m).__name__ == CLASSES[kind]}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# What is loaded.


@every_kind
def test_linear_layers_are_the_quantisers_own_under_their_old_names(kind: str, base: Path) -> None:
    model, tokenizer = load_base(str(base), quantize=kind)
    plain, _ = load_base(str(base))
    wanted = {n for n, m in plain.named_modules() if type(m) is nn.Linear} - {"lm_head"}
    assert _linears(model, kind).keys() == wanted
    assert len(wanted) == LINEARS
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert quantization_of(model) == kind
    assert quantization_of(plain) is None
    assert not model.training
    assert tokenizer.decode(tokenizer("cats").input_ids) == "cats"
    error = (logits(model) - logits(plain)).norm() / logits(plain).norm()
    assert 1e-3 < error < (0.1 if kind == "8bit" else 0.8)


@every_kind
def test_lora_finds_its_targets(kind: str, base: Path) -> None:
    adapted = with_lora(_routed(base, kind), LoraStage())
    found = {n.rsplit(".", 1)[-1] for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    assert found == {"q_proj", "v_proj", "gate_proj"}
    assert quantization_of(adapted) == kind


def test_the_fingerprint_tells_the_kinds_apart_and_survives_forwards_and_lora(base: Path) -> None:
    found = {fingerprint(load_base(str(base))[0])}
    for kind in KINDS:
        model = _routed(base, kind)
        before = fingerprint(model)
        logits(model)
        assert fingerprint(model) == before
        assert fingerprint(with_lora(model, LoraStage())) == before
        found.add(before)
    assert len(found) == 3


@every_kind
def test_a_base_stored_in_bfloat16_has_the_same_fingerprint_loaded_as_float32(
    kind: str, tmp_path: Path
) -> None:
    folder = _save(copy.deepcopy(_lively()).to(torch.bfloat16), tmp_path / "base")
    short, long = (
        load_base(str(folder), quantize=kind, dtype=dtype)[0] for dtype in ("bfloat16", "float32")
    )
    assert fingerprint(short) == fingerprint(long)


@every_kind
def test_bitsandbytes_says_nothing(
    kind: str, base: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        logits(_routed(base, kind))
    assert not [each for each in caplog.records if each.name.startswith("bitsandbytes")]


# What a forward computes.


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sparse_equals_gated(kind: str, dtype: str, base: Path) -> None:
    model = _routed(base, kind, dtype=dtype)
    with execution(model, "gated"), record_routing(model) as trace:
        gated = logits(model)
    sparse = logits(model)
    assert 0.2 < trace.sparsity() < 0.8
    if dtype == "float32":
        torch.testing.assert_close(sparse, gated, **CLOSE)
    else:  # a few roundings to 8 bits of logits that reach 10
        assert sparse.dtype == torch.bfloat16
        assert (sparse - gated).abs().max() <= 2**-4
        assert (sparse - gated).float().norm() <= 2**-8 * gated.float().norm()


@every_kind
@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral"])
def test_fused_transposed_and_expert_layers_are_routed_too(
    family: str, kind: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "n_embd": 64, "n_inner": 128} if family == "gpt2" else SIZES
    folder = _save(tiny_base(family, initializer_range=0.15, **sizes), tmp_path / "base")
    model = _routed(folder, kind)
    assert len(_linears(model, kind)) >= 3 * 4
    with execution(model, "gated"):
        gated = logits(model)
    torch.testing.assert_close(logits(model), gated, **CLOSE)


def test_a_tokens_8_bit_output_does_not_depend_on_its_neighbours(base: Path) -> None:
    model = _routed(base, "8bit")
    whole = logits(model)
    alone = torch.cat([logits(model, row[None]) for row in rows(3)])
    torch.testing.assert_close(alone, whole, **CLOSE)


@every_kind
def test_all_keep_equals_the_quantised_base(kind: str, base: Path) -> None:
    model = _routed(base, kind)
    for router in routers(model).values():
        nn.init.zeros_(router.weight)
        router.bias.data = torch.tensor([1.0, 0.0])
    kept = logits(model)
    assert torch.equal(kept, logits(remove_routers(model)))
    assert torch.equal(kept, logits(load_base(str(base), quantize=kind)[0]))


def test_4_bit_logits_and_router_gradients_are_those_of_the_dequantised_copy(base: Path) -> None:
    model = _routed(base, "4bit")
    logits(model)  # an evaluation forward is what would repack the weights
    copied = _routed(base, "4bit")
    copied = _dequantized(copied)
    torch.testing.assert_close(logits(model), logits(copied), rtol=0, atol=1e-4)
    mine, its = _router_gradient(model), _router_gradient(copied)
    assert its.norm() > 1e-2
    assert torch.cosine_similarity(mine, its, dim=0) > 0.999
    torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-4)


def test_8_bit_router_gradients_point_where_those_of_the_dequantised_copy_do(base: Path) -> None:
    # Activations, too, are rounded to 8 bits there, so the copy is near and no more.
    mine = _router_gradient(_routed(base, "8bit"))
    its = _router_gradient(_dequantized(_routed(base, "8bit")))
    assert torch.cosine_similarity(mine, its, dim=0) > 0.9


def _dequantized(model: nn.Module) -> nn.Module:
    """The routed model with ordinary linear layers that hold what is unpacked."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    for name, module in list(model.named_modules()):
        if type(module).__name__ not in CLASSES.values():
            continue
        held = module.weight
        plain = nn.Linear(module.in_features, module.out_features, bias=False)
        packed = getattr(held, "quant_state", None)
        plain.weight.data = (
            int8_vectorwise_dequant(held.data, held.SCB)
            if packed is None
            else dequantize_4bit(held.data, packed)
        )
        model.set_submodule(name, plain)
    return model


def _router_gradient(model: nn.Module) -> Tensor:
    parameters = train_only(model, "router")
    model.train()
    torch.manual_seed(2)
    with execution(model, "gated"), use_rule(model, GumbelSample(1.0)):
        loss = model(input_ids=rows(3), labels=rows(3), use_cache=False).loss
        found = torch.autograd.grad(loss, parameters)
    return torch.cat([each.flatten() for each in found])


# Training and loading.


@every_kind
def test_a_run_trains_routers_and_lora_and_its_checkpoint_gives_the_same_logits(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, trained = _bytes(base), []
    monkeypatch.setattr(
        "skipgpt.training.run.write",
        lambda model, *a, **k: trained.append(model) or write(model, *a, **k),
    )
    from skipgpt.checkpoint.saving import write

    result = run(
        base, tmp_path / "out", tiny_config("default", stages="router,lora"), quantize=kind
    )
    assert result.info.quantization == kind
    assert read_info(tmp_path / "out") == result.info
    made = json.loads((tmp_path / "out" / "run.json").read_text())
    assert made["quantize"] == kind
    assert made["versions"]["bitsandbytes"]
    loaded, _ = load(tmp_path / "out")
    assert quantization_of(loaded) == kind
    assert torch.equal(logits(loaded), logits(trained[-1]))
    with loaded.disable_adapter():
        assert (logits(loaded) - logits(trained[-1])).abs().max() > 1e-3
    assert _bytes(base) == before
    assert (
        f"# Routers for {base} in {kind} (bitsandbytes)"
        in (tmp_path / "out" / "README.md").read_text()
    )


@every_kind
def test_a_bfloat16_base_trains_and_loads(kind: str, base: Path, tmp_path: Path) -> None:
    config = tiny_config("default", stages="joint", activation_checkpointing=True)
    result = run(base, tmp_path / "out", config, quantize=kind, dtype="bfloat16")
    assert all(0 < each.nll_per_token < 20 for each in result.held_out.values())
    loaded, _ = load(tmp_path / "out", dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert logits(loaded).isfinite().all()


def test_routers_move_and_the_packed_weights_do_not(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", tiny_config(router_stage__start="keep"), quantize="4bit")
    loaded, _ = load(tmp_path / "out")
    plain, _ = load_base(str(base), quantize="4bit")
    held = dict(plain.named_parameters())
    assert all(torch.equal(p, held[n]) for n, p in loaded.named_parameters() if n in held)
    assert all(router.weight.abs().max() > 0 for router in routers(loaded).values())


def test_a_checkpoint_is_trained_further_on_the_base_it_was_trained_on(
    base: Path, tmp_path: Path
) -> None:
    run(base, tmp_path / "routers", quantize="8bit")
    data, config = str(tmp_path / "stories.jsonl"), tiny_config("default", stages="lora")
    result = skipgpt.train(str(tmp_path / "routers"), [data], tmp_path / "healed", config)
    assert result.info.quantization == "8bit"
    assert result.info.stages == ("router", "lora")
    with pytest.raises(ConfigError, match="to 4bit: got one that is held in 8bit already"):
        skipgpt.train(
            str(tmp_path / "routers"), [data], tmp_path / "other", config, quantize="4bit"
        )


def test_resuming_keeps_the_kind_and_gives_the_run_that_was_not_stopped(
    base: Path, tmp_path: Path
) -> None:
    config = tiny_config("default", stages="router,lora", save_every=1)
    run(base, tmp_path / "straight", config, quantize="4bit")
    for stage in ("router", "lora"):
        with stopping_at(2, stage), pytest.raises(StoppedError):
            run(base, tmp_path / "out", config, quantize="4bit", resume=stage == "lora")
        for other in (None, "8bit"):
            with pytest.raises(ConfigError, match="than it was started with: quantize"):
                run(base, tmp_path / "out", config, quantize=other, resume=True)
    run(base, tmp_path / "out", config, quantize="4bit", resume=True)
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


def test_a_run_of_before_there_were_kinds_can_be_resumed(base: Path, tmp_path: Path) -> None:
    with stopping_at(2), pytest.raises(StoppedError):
        run(base, tmp_path / "out", tiny_config("paper"))
    path = tmp_path / "out" / "run.json"
    values = json.loads(path.read_text())
    assert values.pop("quantize") is None
    path.write_text(json.dumps(values))
    run(base, tmp_path / "out", tiny_config("paper"), resume=True)


def test_the_command_quantises(base: Path, tmp_path: Path) -> None:
    data, out = write_documents(tmp_path), tmp_path / "out"
    done = command("train", base, "--data", data, "--out", out, "--quantize", "4bit", *ARGUMENTS)
    assert done.status == 0, done.stderr
    assert "bitsandbytes" not in done.stderr
    assert read_info(out).quantization == "4bit"
    wrong = command("train", base, "--data", data, "--out", tmp_path / "o", "--quantize", "3bit")
    assert wrong.status == 2
    assert "got '3bit'; expected 8bit, 4bit or none" in wrong.stderr


# Merging.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with LoRA on a 4-bit base, which lies beside it."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config("default", stages="joint", router_stage__steps=2)
    run(_save(_lively(), folder / "base"), folder / "checkpoint", config, quantize="4bit")
    return folder / "checkpoint"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "checkpoint"))


def test_lora_stays_unmerged_over_quantised_weights(checkpoint: Path) -> None:
    model, _ = load(checkpoint, merge=True)
    assert any("lora_" in name for name, _ in model.named_parameters())
    assert torch.equal(logits(model), logits(load(checkpoint)[0]))


def test_a_merged_export_of_a_quantised_base_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exporting the checkpoint") as caught:
        skipgpt.export_merged(checkpoint, tmp_path / "merged")
    assert caught.value.got == "a base held in 4bit"
    assert "LoRA can be merged" in caught.value.expected
    assert "skipgpt.load" in caught.value.todo
    assert not (tmp_path / "merged").exists()


# Another base than the one that was trained on.


@pytest.mark.parametrize("kind", [None, "8bit"])
def test_a_base_held_in_another_way_is_refused(kind: str | None, checkpoint: Path) -> None:
    path = checkpoint / "skipgpt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": kind}))
    with pytest.raises(CheckpointError, match=r"got base model .* with fingerprint [0-9a-f]{16}"):
        load(checkpoint)


def test_a_base_stored_in_another_kind_is_refused(
    base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    stored = _save(load_base(str(base), quantize="8bit")[0], tmp_path / "stored")
    with pytest.raises(CheckpointError, match=r"in 8bit; expected fingerprint [\w-]+ in 4bit"):
        load(checkpoint, base=str(stored))
    with pytest.raises(ConfigError, match="got one that is held in 8bit already"):
        run(stored, tmp_path / "out", quantize="4bit")


def test_a_checkpoint_from_before_there_were_kinds_is_of_an_unquantised_base(
    checkpoint: Path,
) -> None:
    path = checkpoint / "skipgpt_config.json"
    values = json.loads(path.read_text())
    del values["quantization"]
    path.write_text(json.dumps(values))
    assert read_info(checkpoint).quantization is None


@pytest.mark.parametrize("value", ["5bit", 4, ["4bit"]])
def test_a_config_with_an_unknown_kind_is_called_damaged(value: object, checkpoint: Path) -> None:
    path = checkpoint / "skipgpt_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": value}))
    with pytest.raises(CheckpointError, match=r"reading the checkpoint .*damaged"):
        read_info(checkpoint)


# Bases that are stored quantised.


@every_kind
def test_a_base_stored_quantised_is_loaded_as_it_is_and_trained(
    kind: str, base: Path, tmp_path: Path
) -> None:
    held = load_base(str(base), quantize=kind)[0]
    stored = _save(held, tmp_path / "stored")
    for quantize in (None, kind):
        model, _ = load_base(str(stored), quantize=quantize)
        assert fingerprint(model) == fingerprint(held)
        assert torch.equal(logits(model), logits(held))
    result = run(stored, tmp_path / "out")
    assert result.info.quantization == kind
    load(tmp_path / "out")
    load(tmp_path / "out", base=str(base))  # quantised anew, these are the same weights


def test_the_guards_hold_for_bases_stored_quantised(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    outliers = BitsAndBytesConfig(load_in_8bit=True)  # the default threshold of 6
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=outliers)
    stored = _save(model, tmp_path / "eight")
    assert json.loads((stored / "config.json").read_text())["quantization_config"][
        "llm_int8_threshold"
    ]
    linears = _linears(load_base(str(stored))[0], "8bit").values()
    assert {each.state.threshold for each in linears} == {0.0}

    stored = _save(load_base(str(base), quantize="4bit")[0], tmp_path / "four")
    model = load_base(str(stored))[0]
    logits(model)
    linears = _linears(model, "4bit").values()
    assert len(linears) == LINEARS
    assert not any(each.support_avx512bf16_for_cpu for each in linears)
    assert all(each.weight.shape == (each.weight.numel(), 1) for each in linears), "repacked"


# What cannot be had.


def test_4_bit_layers_that_a_cpu_unpacks_wrongly_are_refused_by_name(tmp_path: Path) -> None:
    folder = _save(tiny_base(**SIZES | {"intermediate_size": 96}), tmp_path / "odd")
    with pytest.raises(UnsupportedModelError, match="loading the base model") as caught:
        load_base(str(folder), quantize="4bit")
    assert "model.layers.0.mlp.down_proj (96)" in caught.value.got
    assert "divisible by the block size, 64" in caught.value.expected
    assert caught.value.todo == "use 8bit, or a GPU"
    load_base(str(folder), quantize="8bit")


def test_more_than_three_such_layers_are_counted(tmp_path: Path) -> None:
    folder = _save(tiny_base(), tmp_path / "odd")  # hidden size 32
    with pytest.raises(UnsupportedModelError, match=r"down_proj|q_proj \(32\).* and 18 more"):
        load_base(str(folder), quantize="4bit")


@every_kind
def test_a_base_of_which_nothing_would_be_quantised_is_refused(kind: str, tmp_path: Path) -> None:
    folder = _save(tiny_base("falcon"), tmp_path / "base")
    with pytest.raises(UnsupportedModelError, match="got no layer that bitsandbytes quantises"):
        load_base(str(folder), quantize=kind)


def test_an_unknown_kind_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got '2bit'; expected 8bit, 4bit or none"):
        run(base, tmp_path / "out", quantize="2bit")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="got '2bit'"):
        load_base(str(base), quantize="2bit")


@every_kind
def test_without_bitsandbytes_the_install_line_is_printed(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = _save(load_base(str(base), quantize=kind)[0], tmp_path / "stored")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for folder, quantize in ((base, kind), (stored, None)):
        with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[quantize\]'"):
            load_base(str(folder), quantize=quantize)
    load_base(str(base))


class _Opaque(nn.Module):
    """What a quantiser might put in the place of a linear layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_a_quantised_projection_that_does_not_tell_its_width_is_refused() -> None:
    model = tiny_base()
    attn = model.model.layers[1].self_attn
    attn.k_proj = _Opaque(attn.k_proj)
    model.is_quantized = True
    with pytest.raises(UnsupportedModelError, match="adding routers") as caught:
        add_routers(model)
    assert caught.value.got == "layers whose self_attn.k_proj has no out_features"


def test_a_base_in_another_format_is_not_quantised_once_more(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skipgpt.model.loading.bitsandbytes import loading_options

    config = SimpleNamespace(quantization_config={"quant_method": "gptq", "bits": 4})
    assert loading_options("4bit", config, torch.float32, "cpu") == {}
    assert loading_options(None, config, torch.float32, "cpu") == {}
    options = loading_options("4bit", SimpleNamespace(), torch.float32, "cpu")
    monkeypatch.setattr("skipgpt.model.base.loading_options", lambda *_: {})
    assert options["device_map"] == {"": "cpu"}
    with pytest.raises(ConfigError, match="held in another format already"):
        run(base, tmp_path / "out", quantize="4bit")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


# What is counted.


@every_kind
def test_packed_weights_count_as_many_as_they_stand_for(kind: str, base: Path) -> None:
    torch.manual_seed(1)
    plain = add_routers(load_base(str(base))[0])
    model = _routed(base, kind)
    assert layer_costs(routed_layers(model)[0]) == layer_costs(routed_layers(plain)[0])
    assert layer_costs(routed_layers(model)[0]).mlp == 3 * 64 * 128
    keep = {Site(n, module): 0.5 for n in range(3) for module in ("attn", "mlp")}
    assert sparsities(model, keep, 8.0) == sparsities(plain, keep, 8.0)
    healed = with_lora(model, LoraStage())
    assert sparsities(healed, keep, 8.0) == sparsities(plain, keep, 8.0)


@every_kind
def test_scales_are_part_of_the_fingerprint(kind: str, base: Path) -> None:
    model, _ = load_base(str(base), quantize=kind)
    before, digest = fingerprint(model), weights_digest(model)
    layer = next(iter(_linears(model, kind).values()))
    scales = layer.weight.SCB if kind == "8bit" else layer.weight.quant_state.absmax
    scales[0] *= 1.5
    assert fingerprint(model) != before
    assert fingerprint(model).partition("-")[0] == before.partition("-")[0]
    assert weights_digest(model) != digest


@pytest.mark.parametrize(("kind", "name"), [("8bit", "SCB"), ("4bit", "weight.absmax")])
def test_a_stored_base_with_too_few_scales_is_refused_by_name(
    kind: str, name: str, base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**{f"load_in_{kind}": True})
    stored = _save(
        AutoModelForCausalLM.from_pretrained(base, quantization_config=config), tmp_path / "stored"
    )
    load_base(str(stored))
    file = stored / "model.safetensors"
    tensors = load_file(file)
    scales = f"model.layers.1.self_attn.q_proj.{name}"
    tensors[scales] = tensors[scales][:-1].clone()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=f"another shape of the tensors {scales}"):
        load_base(str(stored))
