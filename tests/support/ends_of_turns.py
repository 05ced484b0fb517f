"""Tiny chat models, and each way to generate with them."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.api.instance import Instance
from torch import Tensor, nn

from skipgpt.evaluation.harness.model import RoutedLM
from skipgpt.serving.generation import Completion, GenerationRequest, run_request
from tiny import tiny_routed

PROMPT, NEW = "ab ab ab", 8


def routed(**changes: Any) -> Any:
    return tiny_routed(initializer_range=0.2, vocab_size=260, **changes)


@torch.no_grad()
def argmaxes(model: nn.Module, tokenizer: Any, steps: int = NEW) -> tuple[str, list[Tensor]]:
    """Text and log-probabilities of a loop of argmax over plain forwards of the whole text."""
    ids, places = tokenizer(PROMPT, return_tensors="pt").input_ids, []
    for _ in range(steps):
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        places.append(logits.log_softmax(-1))
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
    return tokenizer.decode(ids[0, -steps:], skip_special_tokens=True), places


def job(tokenizer: Any, **wanted: Any) -> GenerationRequest:
    return GenerationRequest(tuple(tokenizer(PROMPT).input_ids), **{"max_tokens": NEW, **wanted})


def served(model: Any, tokenizer: Any, **wanted: Any) -> tuple[str, Completion, list[Any]]:
    pieces: list[Any] = []
    done = run_request(model, tokenizer, job(tokenizer, **wanted), pieces.append)
    return "".join(p.text for p in pieces), done, [t for p in pieces for t in p.tokens]


def benchmarked(model: Any, tokenizer: Any) -> str:
    options = {"until": ["\n\n\n\n"], "max_gen_toks": NEW, "do_sample": False}
    asked = [Instance("generate_until", {}, (PROMPT, options), 0, ("task", 0, 1))]
    (text,) = RoutedLM(model, tokenizer, batch_size=1).generate_until(asked)
    return str(text)
