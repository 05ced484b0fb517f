"""What cannot be held in 8 bits on a CPU."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import zoo
from cases import base, families, routed
from runs import shared_checkpoint
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe
from skipgpt.errors import ConfigError, SkipGPTError, UnsupportedModelError
from skipgpt.model.base import load_base
from skipgpt.model.loading.int8 import is_int8, products_are_exact, quantize_int8

pytestmark = pytest.mark.skipif(
    not products_are_exact(), reason="8-bit products overflow on this CPU"
)

EXPERTS = [name for name, sizes in zoo.ZOO.items() if any("experts" in size for size in sizes)]


@families(EXPERTS)
def test_experts_that_share_a_tensor_are_refused(family: str) -> None:
    model = base(family)
    with pytest.raises(UnsupportedModelError, match=r"got experts that share one tensor: experts"):
        quantize_int8(model)
    assert not is_int8(model)


def _twice() -> nn.Module:
    return quantize_int8(base())


def _with_lora() -> nn.Module:
    return get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj"])).eval()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_twice, "got a model that is quantised already"),
        (_with_lora, r"got a model with LoRA on it.*merge=True"),
        (lambda: base().train(), r"got a model in training mode.*model.eval\(\)"),
        (lambda: base().to("meta"), "got a model on meta; expected one on a CPU"),
    ],
)
def test_other_models_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=f"quantising a model to int8: {message}"):
        quantize_int8(make())


def test_a_cpu_whose_products_overflow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skipgpt.model.loading.int8.products_are_exact", lambda: False)
    with pytest.raises(ConfigError, match=r"8-bit products overflow; expected one with VNNI"):
        quantize_int8(base())


def test_a_gradient_through_rounding_is_refused() -> None:
    model = quantize_int8(base())
    wanting = model.get_input_embeddings()(torch.ones(1, 3, dtype=torch.long)).requires_grad_()
    with pytest.raises(ConfigError, match="got an input that requires a gradient"):
        model(inputs_embeds=wanting)
    with torch.no_grad():
        assert model(inputs_embeds=wanting).logits.isfinite().all()


def test_an_int8_model_is_not_described_as_a_checkpoint() -> None:
    with pytest.raises(ConfigError, match="got one that is quantised to int8"):
        describe(quantize_int8(routed()), "base")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "8bit"}, "got '8bit'; expected int8 or none; choose 8bit and 4bit when"),
        ({"quantize": "int8"}, "got a model with LoRA on it"),
    ],
)
def test_what_a_checkpoint_cannot_become_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(SkipGPTError, match=message):
        load(shared_checkpoint(), **options)


def test_int8_is_not_how_a_base_is_held() -> None:
    with pytest.raises(ConfigError, match="got 'int8'; expected 8bit, 4bit or none"):
        load_base("nano", quantize="int8")
