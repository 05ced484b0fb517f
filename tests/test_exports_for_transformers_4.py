"""Every export says what it is in the words of transformers 4, too.

With SKIPGPT_TRANSFORMERS4, a Python that has transformers 4 (`make test-transformers4`), that
library itself loads exports of every family that it knows.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer

import skipgpt
import zoo
from runs import logits, rows, write_documents
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.export.transformers4 import save_tokenizer, write_older_config
from skipgpt.model.base import load_base
from skipgpt.model.surgery import add_routers, routers
from skipgpt.routing.decision import Site
from skipgpt.routing.router import set_constant
from tiny import byte_tokenizer, tiny_base

PYTHON4 = os.environ.get("SKIPGPT_TRANSFORMERS4")
CUTTING = DataConfig(block_size=16, held_out=0.3, calibration_tokens=128, evaluation_tokens=128)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DEFAULT = {"rope_type": "default", "rope_theta": 500000.0}
FORMS = ("merged", "transformers", "vllm")


def export(folder: Path, form: str, base: nn.Module, tokenizer: Any = None) -> Path:
    """One of the three exports of a base, without two modules where it is static."""
    base.save_pretrained(folder / "base")
    (tokenizer or byte_tokenizer()).save_pretrained(folder / "base")
    model, _ = load_base(str(folder / "base"))
    add_routers(model, RouterConfig())
    for site, router in routers(model).items():
        set_constant(router, -1.0 if site in (Site(0, "mlp"), Site(1, "attn")) else 1.0)
    save(model, folder / "checkpoint", describe(model, str(folder / "base")))
    if form == "merged":
        skipgpt.export_merged(folder / "checkpoint", folder / "out")
    else:
        how: Any = {"form": form, "data": [str(write_documents(folder))], "cutting": CUTTING}
        skipgpt.export_static(folder / "checkpoint", folder / "out", **how)
    return folder / "out"


def read(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", FORMS)
def test_the_rope_is_said_in_both_ways(form: str, tmp_path: Path) -> None:
    config = read(export(tmp_path, form, tiny_base(rope_parameters=dict(LLAMA3))))
    assert config["rope_parameters"] == LLAMA3
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    assert config["torch_dtype"] == config["dtype"] == "float32"


@pytest.mark.parametrize("form", FORMS)
def test_a_plain_rope_has_no_scaling(form: str, tmp_path: Path) -> None:
    config = read(export(tmp_path, form, tiny_base(rope_parameters=dict(DEFAULT))))
    assert config["rope_parameters"] == DEFAULT
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] is None


@pytest.mark.parametrize("form", FORMS)
def test_the_tokenizers_class_is_known_to_both(form: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|end|>"]})
    folder = export(tmp_path, form, tiny_base(vocab_size=258), tokenizer)
    said = read(folder, "tokenizer_config.json")
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert said["additional_special_tokens"] == ["<|end|>"]
    assert "extra_special_tokens" not in said
    assert said["model_input_names"] == ["input_ids", "attention_mask"]
    skipgpt.register()
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert again("cats<|end|>").input_ids == tokenizer("cats<|end|>").input_ids
    assert again.all_special_tokens == tokenizer.all_special_tokens


@pytest.mark.parametrize("adds", [True, False])
def test_a_class_that_adds_a_bos_by_a_setting_is_told_whether_to(
    adds: bool, tmp_path: Path
) -> None:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}
    tokenizer = LlamaTokenizer(vocab=words, merges=[("▁", "a")], add_bos_token=adds)
    save_tokenizer(tokenizer, tmp_path)
    said = read(tmp_path, "tokenizer_config.json")
    assert (said["add_bos_token"], said["add_eos_token"]) == (adds, False)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a").input_ids == ([1, 5] if adds else [5])


SHORT = (
    "llama/biased-llama3-rope",
    "gemma3_text",
    "gpt_neox",
    "phi3",
    "olmo3",
    "qwen3_moe",
    "mellum",
)


@pytest.mark.parametrize("family", SHORT)
def test_transformers_5_reads_the_same_model_as_before(family: str, tmp_path: Path) -> None:
    model = zoo.build(family, 0)
    model.save_pretrained(tmp_path)
    before = AutoModelForCausalLM.from_pretrained(tmp_path).config.to_dict()
    write_older_config(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    found = again.config.to_dict()
    assert {name: found[name] for name in before} == before
    assert torch.equal(logits(again), logits(model))


def test_a_scaling_that_an_older_family_refuses_is_whole_for_transformers_5(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "attention_factor": 1.5}
    rope = yarn | {"original_max_position_embeddings": 16}
    model = zoo.build("olmo", 0, rope_parameters=rope)
    model.save_pretrained(tmp_path)
    write_older_config(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


def test_a_scaling_is_cut_to_what_an_older_family_takes(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = zoo.build("olmo", 0, rope_parameters=linear)
    model.save_pretrained(tmp_path)
    write_older_config(tmp_path)
    assert read(tmp_path)["rope_scaling"] == {"type": "linear", "factor": 4.0}
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


IN_TRANSFORMERS_4 = """
import json, pathlib, sys
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
found = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    tokens = AutoTokenizer.from_pretrained(folder)("cats")
    if json.loads((folder / "config.json").read_text())["model_type"] not in (
        transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    ):
        found[folder.name] = None
        continue
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    kept = torch.load(folder / "right.pt")
    with torch.no_grad():
        got = model(kept["ids"], use_cache=False).logits
    off = float((got - kept["right"]).norm() / kept["right"].norm())
    found[folder.name] = {"off": off, "tokens": dict(tokens)}
print("FOUND" + json.dumps(found))
"""
# What transformers 4 has no way to say, or computes otherwise with the same config.
OTHERWISE = {
    "gpt2",  # its fused attention knows no scale by layer
    "qwen2_moe",  # no windows in some of the layers; real models have none
    "qwen2_moe/mixed",
}
NOT_THERE = {"cwm", "jais2", "mellum", "ministral3", "nanochat"}


def in_transformers_4(folder: Path) -> Any:
    done = subprocess.run(
        [PYTHON4, "-c", IN_TRANSFORMERS_4, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("FOUND")[2])


needs_transformers_4 = pytest.mark.skipif(
    not PYTHON4, reason="SKIPGPT_TRANSFORMERS4 names no Python; see make test-transformers4"
)


@needs_transformers_4
def test_transformers_4_computes_the_same_in_every_family_that_it_knows(tmp_path: Path) -> None:
    for name in zoo.ZOO:
        folder = tmp_path / name.replace("/", "+")
        model = zoo.build(name, 0)
        model.save_pretrained(folder)
        write_older_config(folder)
        save_tokenizer(byte_tokenizer(), folder)
        torch.save({"ids": rows(3), "right": logits(model)}, folder / "right.pt")
    found = {name.replace("+", "/"): each for name, each in in_transformers_4(tmp_path).items()}
    assert {name for name, each in found.items() if each is None} == NOT_THERE
    # Apertus' activation has constants in bfloat16 there: 1e-4. A wrong rope makes 1e-2 and more.
    off = {name: each["off"] for name, each in found.items() if each and each["off"] > 1e-3}
    assert off.keys() <= OTHERWISE, off
    tokens = byte_tokenizer()("cats").input_ids
    assert all(
        each["tokens"] == {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
        for each in found.values()
        if each
    )


@needs_transformers_4
@pytest.mark.parametrize("rope", [DEFAULT, LLAMA3], ids=lambda rope: rope["rope_type"])
def test_transformers_4_reads_a_static_export(rope: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|end|>"]})
    base = tiny_base(vocab_size=258, rope_parameters=dict(rope))
    folder = export(tmp_path, "transformers", base, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.save({"ids": rows(3), "right": logits(model)}, folder / "right.pt")
    alone = tmp_path / "alone"
    alone.mkdir()
    folder.rename(alone / "out")
    (found,) = in_transformers_4(alone).values()
    assert found["off"] < 1e-5
    assert found["tokens"]["input_ids"] == tokenizer("cats").input_ids
