"""What quantises or adapts a merged export leaves its routers and stand-ins alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.quantizers_utils import should_convert_module

import skipgpt
from runs import logits, rows
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import RouterConfig
from skipgpt.model.base import load_base
from skipgpt.model.families.parameter_names import is_routing
from skipgpt.model.state import record_routing
from skipgpt.model.surgery import add_routers, router_state_dict, stand_ins
from tiny import byte_tokenizer, tiny_base

# Every layer has a multiple of 64 inputs, which 4-bit weights on a CPU need.
SIZES: dict[str, object] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
HEADS = ("linear", "mlp")
BY_KIND = {
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
}


@pytest.fixture(scope="module", params=HEADS)
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged export with stand-ins whose updates matter."""
    folder = tmp_path_factory.mktemp(f"export-{request.param}")
    tiny_base(initializer_range=0.15, **SIZES).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model, _ = load_base(str(folder / "base"))
    torch.manual_seed(1)
    add_routers(model, RouterConfig(head=request.param, stand_in=4))
    for stand_in in stand_ins(model).values():
        nn.init.normal_(stand_in.up.weight, std=0.1)
    save(model, folder / "checkpoint", describe(model, str(folder / "base")))
    skipgpt.export_merged(folder / "checkpoint", folder / "merged")
    skipgpt.register()
    return folder / "merged"


def plain(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def margins(model: nn.Module) -> Tensor:
    with torch.no_grad(), record_routing(model) as trace:
        logits(model)
    return trace.margins()


def first_margin(model: Any, tokens: Tensor) -> Tensor:
    """By hand: the first router reads embeddings, which nobody quantises."""
    first = "layers.0.attn_router."
    router = {
        name.removeprefix(first): tensor
        for name, tensor in router_state_dict(model).items()
        if name.startswith(first)
    }
    read = model.model.embed_tokens.weight.float()[tokens]
    if "up.weight" in router:
        read = (read @ router["up.weight"].T + router["up.bias"]).clamp(min=0)
        router = {"weight": router["out.weight"], "bias": router["out.bias"]}
    both = read @ router["weight"].T + router["bias"]
    return both[..., 0] - both[..., 1]


@pytest.mark.parametrize("kind", BY_KIND)
def test_bitsandbytes_leaves_routers_and_stand_ins(kind: str, merged: Path) -> None:
    original = router_state_dict(plain(merged))
    model = plain(merged, quantization_config=BY_KIND[kind])
    held = router_state_dict(model)
    assert held.keys() == original.keys()
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    assert all(torch.equal(tensor, original[name]) for name, tensor in held.items())
    assert sum("bit" in type(module).__name__ for module in model.modules()) == 3 * 7
    assert logits(model).isfinite().all()
    read = rows(3)
    first = margins(model)[: read.numel()].view(read.shape)
    torch.testing.assert_close(first, first_margin(model, read))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_rest_may_be_short(dtype: str, merged: Path) -> None:
    model = plain(merged, dtype=dtype, quantization_config=BY_KIND["8bit"])
    assert {t.dtype for t in router_state_dict(model).values()} == {torch.float32}
    assert logits(model).isfinite().all()


def test_a_tokens_8_bit_output_does_not_depend_on_its_neighbours(merged: Path) -> None:
    model = plain(merged, quantization_config=BY_KIND["8bit"])
    # bitsandbytes picks outliers by columns of the whole batch, unless its threshold is 0.
    assert {m.state.threshold for m in model.modules() if hasattr(m, "state")} == {0.0}
    torch.testing.assert_close(logits(model, rows(1)), logits(model, rows(3))[:1])


def test_4_bit_weights_are_not_repacked(merged: Path) -> None:
    model = plain(merged, quantization_config=BY_KIND["4bit"])
    flags = [getattr(m, "support_avx512bf16_for_cpu", None) for m in model.modules()]
    assert [flag for flag in flags if flag is not None] == [False] * 3 * 7


def test_transformers_own_rule_for_quantisers_excludes_them(merged: Path) -> None:
    model = plain(merged)
    patterns = list(model._keep_in_fp32_modules)
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    ours = {name for name in leaves if is_routing(f"{name}.")}
    assert ours == {name for name in leaves if not should_convert_module(name, patterns)}
    assert len(ours) >= 3 * 2 * 3


def test_every_linear_layer_that_a_quantiser_looks_for_is_the_bases(merged: Path) -> None:
    # torchao and torch's dynamic quantisation go by the class nn.Linear alone.
    base = AutoModelForCausalLM.from_pretrained(merged.parent / "base")
    wanted, found = (
        {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        for model in (base, plain(merged))
    )
    assert found == wanted


def test_pefts_all_linear_adapts_the_bases_layers_only(merged: Path) -> None:
    model = plain(merged)
    before = margins(model)
    base = AutoModelForCausalLM.from_pretrained(merged.parent / "base")
    wanted = {n for n, m in base.named_modules() if type(m) is nn.Linear} - {"lm_head"}
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted = {n for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    assert {name.removeprefix("base_model.model.") for name in adapted} == wanted
    assert torch.equal(margins(wrapped), before)
    wrapped.train()
    wrapped(input_ids=rows(2), labels=rows(2)).loss.backward()
    moved = {n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all("lora_" in name for name in moved)
