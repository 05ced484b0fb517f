"""LoRA on a module whose weight has another name: merged and unmerged are one model.

What is right comes from transformers and PEFT alone: the base, and the adapter beside its weights.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import skipgpt
from runs import logits, write_documents
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, LoraStage, RouterConfig
from skipgpt.errors import ConfigError
from skipgpt.model.base import load_base
from skipgpt.model.state import execution
from skipgpt.model.surgery import add_routers, routers
from skipgpt.routing.decision import Site
from skipgpt.routing.router import set_constant
from skipgpt.training.stages import with_lora
from tiny import byte_tokenizer, tiny_base

# Folding B A into W reorders products; three layers of lively weights make 1e-4 of it (measured).
CLOSE = {"rtol": 0.0, "atol": 5e-4}
CUTTING = DataConfig(block_size=16, held_out=0.3, calibration_tokens=128, evaluation_tokens=128)
HEAD = {"llama": "lm_head", "gemma2": "lm_head", "gpt2": "lm_head"}
EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte"}


def checkpoint(folder: Path, family: str, *targets: str, tied: bool = True) -> Path:
    """A checkpoint of a base with a tied head, LoRA on the targets, two modules never kept."""
    base = tiny_base(family, tie_word_embeddings=tied, initializer_range=0.2)
    base.save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model, _ = load_base(str(folder / "base"))
    add_routers(model, RouterConfig())
    for site, router in routers(model).items():
        set_constant(router, -1.0 if site in (Site(0, "mlp"), Site(1, "attn")) else 1.0)
    model = with_lora(model, LoraStage(rank=4, targets=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    save(model, folder / "checkpoint", describe(model, str(folder / "base"), stages=("lora",)))
    return folder / "checkpoint"


def by_peft(folder: Path) -> Any:
    """The base as transformers loads it, with the adapter as PEFT loads it, never merged."""
    base = AutoModelForCausalLM.from_pretrained(folder.parent / "base").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, folder / "lora").eval()


def dense(model: nn.Module) -> Tensor:
    with execution(model, "dense"):
        return logits(model)


@pytest.mark.parametrize(
    ("family", "target"), [*HEAD.items(), *EMBEDDING.items()], ids=lambda value: value
)
def test_merged_logits_are_those_of_peft(family: str, target: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, family, target)
    right = logits(by_peft(folder))
    torch.testing.assert_close(dense(load(folder)[0]), right, **CLOSE)
    merged, _ = load(folder, merge=True)
    torch.testing.assert_close(dense(merged), right, **CLOSE)
    assert merged.config.tie_word_embeddings is False
    assert not any("lora_" in name for name, _ in merged.named_parameters())


def test_head_and_embedding_may_have_lora_both(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "llama", "lm_head", "embed_tokens", "q_proj")
    torch.testing.assert_close(dense(load(folder, merge=True)[0]), logits(by_peft(folder)), **CLOSE)


def test_a_merged_export_is_untied(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "llama", "lm_head", "q_proj")
    skipgpt.export_merged(folder, tmp_path / "out")
    skipgpt.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(dense(model), logits(by_peft(folder)), **CLOSE)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


@pytest.mark.parametrize("form", ["transformers", "vllm"])
def test_a_static_export_is_untied(form: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "llama", "lm_head")
    data = [str(write_documents(tmp_path))]
    skipgpt.export_static(folder, tmp_path / "out", data=data, cutting=CUTTING, form=form)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_weights_stay_tied_where_lora_is_elsewhere(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "llama", "q_proj")
    merged, _ = load(folder, merge=True)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings is True


def test_training_says_what_untying_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "skipgpt"):
        folder = checkpoint(tmp_path, "llama", "lm_head")
        (said,) = (r.message for r in caplog.records if r.levelno == logging.WARNING)
        caplog.clear()
        load(folder, merge=True)
    size = f"{257 * 32:,}"  # vocabulary times width
    assert "lm_head" in said
    assert size in said
    assert any("lm_head" in r.message and size in r.message for r in caplog.records)


@pytest.mark.parametrize("target", ["self_attn", "norm", "attn_router"])
def test_what_is_no_linear_layer_is_refused_by_name(target: str) -> None:
    model = add_routers(tiny_base())
    stage = LoraStage(targets=(target,))
    with pytest.raises(ConfigError, match=f"no linear layers of this model: {target}"):
        with_lora(model, stage)
