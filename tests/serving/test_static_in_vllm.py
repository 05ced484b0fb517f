from __future__ import annotations

from pathlib import Path

import pytest
import torch

import served
import zoo
from runs import write_documents
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig, RouterConfig
from skipgpt.export import export_static
from skipgpt.model.base import load_base
from skipgpt.model.state import use_rule
from skipgpt.model.surgery import add_routers, routers
from skipgpt.routing.decision import Forced, Site
from skipgpt.routing.router import set_constant
from tiny import byte_tokenizer

CUTTING = DataConfig(block_size=16, held_out=0.3, calibration_tokens=128, evaluation_tokens=128)
NEVER = (Site(0, "mlp"), Site(2, "attn"), Site(2, "mlp"), Site(3, "attn"), Site(5, "mlp"))
SHAPES = ((0, None), (1, 1), (None, 3), (4, 4), (5, None))


def checkpoint(family: str, folder: Path) -> Path:
    """Six layers, five modules of which no token keeps."""
    base = zoo.build(family, initializer_range=0.2, num_hidden_layers=6, **served.size_of(family))
    base.save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model, _ = load_base(str(folder / "base"))
    add_routers(model, RouterConfig())
    for site, router in routers(model).items():
        set_constant(router, -1.0 if site in NEVER else 1.0)
    save(model, folder / "checkpoint", describe(model, str(folder / "base")))
    return folder / "checkpoint"


@torch.no_grad()
def expected(folder: Path, text: list[int], tokens: list[int]) -> list[float]:
    """Log-probabilities of the tokens after the text in the model without what is removed."""
    model, _ = load(folder)
    with use_rule(model, Forced.without(list(NEVER))):
        logits = model(input_ids=torch.tensor([text + tokens])).logits[0]
    logprobs = logits.log_softmax(-1)[len(text) - 1 : -1]
    assert logprobs.argmax(-1).tolist() == tokens
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def test_stock_vllm_serves_layers_that_lack_a_module(tmp_path: Path) -> None:
    data = [str(write_documents(tmp_path))]
    asked = served.requests(served.prompts(3, 20, 40, vocabulary=256), 8)
    made, engines = [], []
    for family in ("llama", "qwen2"):
        folder, out = checkpoint(family, tmp_path / family), tmp_path / f"{family}-small"
        result = export_static(folder, out, data=data, cutting=CUTTING, form="vllm")
        assert result.removed == NEVER
        assert result.layers == SHAPES
        made.append(folder)
        # Compiled once: what is compiled is the same but for biases.
        how = {"trust_remote_code": True, "enforce_eager": family != "llama"}
        options = {"model": str(out)} | how | served.TOGETHER
        engines.append({"options": options, "rounds": [asked]})
    for folder, (answers,) in zip(
        made, served.serve(tmp_path, *engines, plugins=False), strict=True
    ):
        for request, answer in zip(asked, answers, strict=True):
            logprobs = expected(folder, request["prompt"], answer["tokens"])
            assert answer["logprobs"] == pytest.approx(logprobs, abs=1e-4)
