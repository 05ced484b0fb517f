from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import served


def test_tokens_are_those_of_our_own_model_at_a_size_where_skipping_pays(tmp_path: Path) -> None:
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
    asked = served.requests(served.prompts(*served.MIXED, vocabulary=8192), 32)
    # With both a prefix cache and chunks, and with neither.
    served.check_ways(folder, model, asked, (served.WAYS[0], served.WAYS[3]))
