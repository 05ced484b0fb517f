"""Bases whose weights are held in 8 or 4 bits: what is loaded, computed and counted."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from quantized import CLASSES, LINEARS, SIZES, every_kind, linear_layers, lively, save
from runs import logits, rows
from skipgpt.config import LoraStage
from skipgpt.cost import layer_costs, sparsities
from skipgpt.model.base import load_base
from skipgpt.model.loading.bitsandbytes import KINDS, quantization_of
from skipgpt.model.loading.fingerprint import fingerprint, weights_digest
from skipgpt.model.lora import with_lora
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers, routers, train_only
from skipgpt.routing.decision import GumbelSample, Site
from tiny import tiny_base

# Tokens are multiplied row by row, so only the order of sums in attention may differ.
CLOSE = {"rtol": 0.0, "atol": 1e-5}


def _routed(base: Path, kind: str, **options: Any) -> nn.Module:
    model, _ = load_base(str(base), quantize=kind, **options)
    torch.manual_seed(1)
    return add_routers(model).eval()


@every_kind
def test_linear_layers_are_the_quantisers_own_under_their_old_names(kind: str, base: Path) -> None:
    model, tokenizer = load_base(str(base), quantize=kind)
    plain, _ = load_base(str(base))
    wanted = {n for n, m in plain.named_modules() if type(m) is nn.Linear} - {"lm_head"}
    assert linear_layers(model, kind).keys() == wanted
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
    folder = save(copy.deepcopy(lively()).to(torch.bfloat16), tmp_path / "base")
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
    folder = save(tiny_base(family, initializer_range=0.15, **sizes), tmp_path / "base")
    model = _routed(folder, kind)
    assert len(linear_layers(model, kind)) >= 3 * 4
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
    layer = next(iter(linear_layers(model, kind).values()))
    scales = layer.weight.SCB if kind == "8bit" else layer.weight.quant_state.absmax
    scales[0] *= 1.5
    assert fingerprint(model) != before
    assert fingerprint(model).partition("-")[0] == before.partition("-")[0]
    assert weights_digest(model) != digest
