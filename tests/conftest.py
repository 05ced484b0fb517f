"""Tiny random models, a byte tokenizer, where development data lies, and how much is tried.

SKIPGPT_LONG=1 makes the suite long: checks that otherwise range over one family of each layout
range over all of them, and random ones try many more examples.
"""

from __future__ import annotations

import importlib.util
import os

# Triton decides at its import whether kernels are interpreted on the CPU, and torch imports it. For
# tests on a GPU, `make test-gpu` says 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import zoo
from skipgpt.model.surgery import add_routers

# vLLM pins other libraries, and lives in an environment of its own: see `make test-serving`.
collect_ignore = [] if importlib.util.find_spec("vllm") else ["serving"]

LONG = os.environ.get("SKIPGPT_LONG") == "1"

# No test is timed, and every run tries the same examples.
settings.register_profile("seeded", deadline=None, derandomize=True, database=None, max_examples=60)
settings.register_profile("long", parent=settings.get_profile("seeded"), max_examples=300)
settings.load_profile("long" if LONG else "seeded")


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SKIPGPT_CACHE", str(tmp_path / "cache"))


def tiny_base(model_type: str = "llama", seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random model of a family as transformers draws it, float32, in evaluation mode."""
    return zoo.build(model_type, seed, **changes)


def tiny_routed(
    model_type: str = "llama", router: object = None, **changes: object
) -> torch.nn.Module:
    """The same with routers at random, which skip about half."""
    return add_routers(tiny_base(model_type, **changes), router).eval()


def examples(short: int, long: int) -> settings:
    """How many examples a costly random check tries in the short and in the long suite."""
    return settings(max_examples=long if LONG else short)


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
