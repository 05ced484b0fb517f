"""The linear layers that LoRA adapts: each family's own by default, and no others by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import zoo
from cases import CLOSE, base, every_layout, routed
from runs import logits, tiny_config
from skipgpt.config import ALL_LINEAR, LoraStage, recipe
from skipgpt.config.settings import to_dict
from skipgpt.errors import ConfigError
from skipgpt.model.lora import check_targets, merge_lora, target_names, with_lora, with_own_targets
from skipgpt.model.state import execution
from skipgpt.model.surgery import add_routers, routed_layers
from skipgpt.training.dry_run import dry_run
from skipgpt.training.run_record import RUN, begin_run, compare_run
from skipgpt.training.stages import prepare
from tiny import tiny_base

LLAMA = ("q_proj", "v_proj", "gate_proj")
OWN = {
    "llama": LLAMA,
    "gemma3_text": LLAMA,
    "nemotron": ("q_proj", "v_proj", "up_proj"),
    "glm4": ("q_proj", "v_proj", "gate_up_proj"),
    "phi": ("q_proj", "v_proj", "fc1"),
    "starcoder2": ("q_proj", "v_proj", "c_fc"),
    "phi3": ("qkv_proj", "gate_up_proj"),
    "gpt2": ("c_attn", "c_fc"),
    "bloom": ("query_key_value", "dense_h_to_4h"),
    "falcon/new": ("query_key_value", "dense_h_to_4h"),
    "mixtral": ("q_proj", "v_proj"),  # its experts share one tensor
    "gpt_oss": ("q_proj", "v_proj"),
    "qwen2_moe": LLAMA,  # the gate of the shared expert
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"),
    "deepseek_v3/no-q-lora": ("q_proj", "kv_a_proj_with_mqa"),
    "dots1": ("q_proj", "v_proj"),  # PEFT takes gate_proj for its experts
    "mellum": ("q_proj", "v_proj"),
}


@pytest.mark.parametrize("family", OWN)
def test_the_paper_adapts_what_the_family_has_for_query_value_and_gate(family: str) -> None:
    for model in (base(family), routed(family)):
        assert with_own_targets(model, recipe("paper").lora_stage).targets == OWN[family]
        listed = LoraStage(targets=("o_proj",))
        assert with_own_targets(model, listed) is listed


@pytest.mark.parametrize("family", OWN)
def test_all_linear_layers_are_the_same_with_routers_and_without(family: str) -> None:
    names = target_names(base(family), LoraStage(targets=ALL_LINEAR))
    assert names == target_names(routed(family), LoraStage(targets=ALL_LINEAR))
    assert len(names) >= 2


@every_layout
def test_the_default_recipe_heals_every_layout(family: str) -> None:
    model = prepare(routed(family), "lora", recipe("default"))
    ids = torch.randint(1, 257, (2, 11), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    for n, layer in enumerate(routed_layers(model)):
        own = [name for name in trained if f".{n}.{layer.family.attn}." in name]
        assert len(own) >= 2, n
    # B starts at zero, so that A has no gradient yet.
    assert all(
        grad is not None and grad.any() for name, grad in trained.items() if "lora_B" in name
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "bloom", "mixtral"])
def test_a_dry_run_of_the_default_recipe_counts_what_trains(family: str) -> None:
    config = tiny_config("default", stages="lora", router__stand_in=0)
    told = dry_run(zoo.config(family), config, layout="single", processes=1, dtype=torch.bfloat16)
    trained = prepare(routed(family), "lora", config).parameters()
    assert told.stages[0].held.trained == sum(p.numel() for p in trained if p.requires_grad)


def test_transposed_layers_are_adapted_as_peft_does_it() -> None:
    adapter = LoraConfig(r=4, lora_alpha=32, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    theirs = get_peft_model(tiny_base("gpt2", initializer_range=0.2), adapter).eval()
    model = with_lora(add_routers(tiny_base("gpt2", initializer_range=0.2)), LoraStage(rank=4))
    given = dict(model.named_parameters())
    torch.manual_seed(1)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
            given[name].data.copy_(parameter.data)
    right = logits(theirs)
    with execution(model.eval(), "dense"):
        torch.testing.assert_close(logits(model), right, **CLOSE)
        merged = merge_lora(model)
        torch.testing.assert_close(logits(merged), right, rtol=0.0, atol=5e-4)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "deepseek_v3"])
def test_advice_about_targets_can_be_followed(family: str) -> None:
    model = base(family)
    with pytest.raises(ConfigError, match="no linear layers of this model: nope;") as caught:
        check_targets(model, LoraStage(targets=("nope",)))
    (listed,) = re.findall(r"expected some of (.*), or all-linear", str(caught.value))
    names = [name for name, module in model.named_modules() if "layers." in name or ".h." in name]
    assert all(any(name.endswith(f".{each}") for name in names) for each in listed.split(", "))
    assert "lm_head" not in listed
    (advised,) = re.findall(r"--set lora_stage.targets=(\S+)", str(caught.value))
    with_lora(model, LoraStage(targets=tuple(advised.split(","))))


def test_a_run_that_an_older_version_recorded_is_resumed(tmp_path: Path) -> None:
    def facts(stages: str, targets: tuple[str, ...]) -> dict[str, object]:
        return {"config": to_dict(tiny_config(stages=stages, lora_stage__targets=targets))}

    begin_run(tmp_path, facts("fit,router", LLAMA))
    assert (tmp_path / RUN).exists()
    compare_run(tmp_path, facts("fit,router", OWN["gpt2"]))  # no stage reads them
    begin_run(tmp_path, facts("router,lora", LLAMA))
    compare_run(tmp_path, facts("router,lora", OWN["llama"]))
    with pytest.raises(ConfigError, match="other values than it was started with: config"):
        compare_run(tmp_path, facts("router,lora", OWN["gpt2"]))
