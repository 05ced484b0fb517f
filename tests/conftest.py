"""Tiny random models of every family, a byte tokenizer, and where development data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from skipgpt.model.families import FAMILIES
from skipgpt.model.surgery import add_routers

# No test is timed, and every run tries the same examples.
settings.register_profile("seeded", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("seeded")

VOCABULARY = 257
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# Windows shorter than the test prompts, so that sliding attention is really exercised.
EXTRAS = {
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5},
}
FAMILY_NAMES = sorted(FAMILIES)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tiny_base(model_type: str = "llama", seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random model of a family, float32, in evaluation mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **SMALL | EXTRAS.get(model_type, {}) | changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tiny_routed(
    model_type: str = "llama", router: object = None, **changes: object
) -> torch.nn.Module:
    """The same with routers at random, which skip about half."""
    return add_routers(tiny_base(model_type, **changes), router).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and token 0 for the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: n for n, letter in enumerate(alphabet, 1)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    token = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=token, eos_token=token, pad_token=token
    )


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A tiny Llama with its tokenizer, saved as from a hub."""
    folder = tmp_path / "base"
    tiny_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data_folder() -> Path:
    """Real development data, which the product does not carry."""
    folder = Path(
        os.environ.get("SKIPGPT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}")
    return folder
