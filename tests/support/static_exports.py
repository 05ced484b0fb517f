"""Static exports of tiny checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM

import skipgpt
from runs import tiny_config, write_documents
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.export import StaticExport
from skipgpt.export.pairing import Pair
from skipgpt.export.rebuild import smaller_model
from skipgpt.model.base import load_base
from skipgpt.model.surgery import add_routers, routers, stand_ins
from skipgpt.routing.decision import Site
from skipgpt.routing.router import set_constant
from skipgpt.training.stages import with_lora
from tiny import byte_tokenizer, tiny_base

M0, A1, M1, A2 = Site(0, "mlp"), Site(1, "attn"), Site(1, "mlp"), Site(2, "attn")
CUTTING = DataConfig(block_size=16, held_out=0.3, calibration_tokens=128, evaluation_tokens=128)


def make(folder: Path, skipped: list[Site], base: nn.Module | None = None, **facts: Any) -> Path:
    """A checkpoint whose routers never keep these sites, and others for about half the tokens."""
    (base or tiny_base(initializer_range=0.2)).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model, _ = load_base(str(folder / "base"))
    add_routers(model, RouterConfig(normalize=True, stand_in=facts.pop("stand_in", 0)))
    for stand_in in stand_ins(model).values():
        nn.init.normal_(stand_in.up.weight)
    for site in skipped:
        set_constant(routers(model)[site], -1.0)
    if facts.pop("lora", False):
        model = with_lora(model, tiny_config().lora_stage)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    save(model, folder / "checkpoint", describe(model, str(folder / "base"), **facts))
    write_documents(folder)
    return folder / "checkpoint"


def export(checkpoint: Path, **options: Any) -> StaticExport:
    """Beside the checkpoint, on the documents there."""
    data = [str(checkpoint.parent / "stories.jsonl")]
    out = checkpoint.parent / "small"
    return skipgpt.export_static(checkpoint, out, **{"data": data, "cutting": CUTTING} | options)


def plain(model: nn.Module, pairs: list[Pair], folder: Path) -> Any:
    """The smaller model, saved and loaded by transformers."""
    smaller_model(model, pairs).save_pretrained(folder)
    how = {"attn_implementation": model.config._attn_implementation}
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **how).eval()
