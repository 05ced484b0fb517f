from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import served

MIXED = (3, 17, 40, 64, 100, 150, 200, 5)


def assert_same_tokens(answers: list[Any], model: Any, requests: list[dict[str, Any]]) -> None:
    for number, (answer, request) in enumerate(zip(answers, requests, strict=True)):
        assert answer["tokens"] == served.expected(model, request), f"request {number}"


def assert_all_ways_agree(folder: Path, model: Any, asked: list[dict[str, Any]]) -> None:
    """Twice each, so that a prefix cache is made and then used."""
    engines = [{"options": {"model": str(folder)} | w, "rounds": [asked] * 2} for w in served.WAYS]
    for way, (first, again) in zip(served.WAYS, served.serve(folder.parent, *engines), strict=True):
        assert_same_tokens(first, model, asked)
        assert [answer["tokens"] for answer in again] == [answer["tokens"] for answer in first]
        cached = max(answer["cached"] for answer in again)
        assert cached >= 160 if way["enable_prefix_caching"] else not cached


def test_a_batch_of_mixed_lengths_gives_the_tokens_of_our_own_model(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    model = served.routed_by_margins(folder)
    assert_all_ways_agree(folder, model, served.requests(served.prompts(*MIXED)))


def test_the_same_holds_at_a_size_where_skipping_pays(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=8192,
        max_position_embeddings=2048,
        initializer_range=0.04,
    )
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = tmp_path / "160m"
    model = served.routed_by_tokens(base, folder)
    asked = served.requests(served.prompts(*MIXED, vocabulary=8192))
    assert_all_ways_agree(folder, model, asked)


@pytest.mark.parametrize(
    "router",
    [{}, {"decides": "layer"}, {"input": "module_input"}],
    ids=["each module", "each layer", "each module reads its own input"],
)
def test_every_family_gives_the_tokens_of_our_own_model(
    router: dict[str, Any], tmp_path: Path
) -> None:
    families = {"decides": ["llama"], "input": ["qwen3"]}.get(
        next(iter(router), ""), ["qwen2", "qwen3", "mistral"]
    )
    asked = served.requests(served.prompts(7, 40, 70, vocabulary=256), 12)
    models, engines = [], []
    for family in families:
        folder = tmp_path / family
        models.append(served.tiny_routed_by_tokens(family, folder, **router))
        options = {"model": str(folder)} | served.TOGETHER
        engines.append({"options": options, "rounds": [asked]})
    for (answers,), model in zip(served.serve(tmp_path, *engines), models, strict=True):
        assert_same_tokens(answers, model, asked)
