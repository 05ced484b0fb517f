"""Tiny random models, a byte tokenizer, and how many examples are tried."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import zoo
from how_much import LONG as LONG
from how_much import OLDEST as OLDEST
from skipgpt.model.surgery import add_routers


def tiny_base(model_type: str = "llama", seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random model of a family as transformers draws it, float32, in evaluation mode."""
    return zoo.build(model_type, seed, **changes)


def tiny_routed(
    model_type: str = "llama", router: object = None, **changes: object
) -> torch.nn.Module:
    """The same with routers at random, which skip about half."""
    return add_routers(tiny_base(model_type, **changes), router).eval()


def save_base(folder: Path) -> Path:
    """Save a tiny Llama with its tokenizer, as from a hub; returns the folder."""
    tiny_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def examples(short: int, long: int) -> settings:
    """How many examples a costly random check tries in the short and in the long suite."""
    return settings(max_examples=long if LONG else max(3, short // 3) if OLDEST else short)


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
