"""Caches of transformers that are chosen by an option change no logit."""

import importlib.util

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from cases import CLOSE
from running.ways import (
    GREEDY,
    SAMPLING,
    caches_of_all_tokens,
    check_logits,
    defined,
    every_policy,
    every_way,
    generated,
    needs_transformers,
    other_layouts,
    prompt,
    sparse_model,
)
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution


@every_way
@caches_of_all_tokens
@torch.no_grad()
def test_a_static_cache_changes_no_logit(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    for how in (GREEDY, SAMPLING, {"prefill_chunk_size": 4}):
        check_logits(model, generated(model, prompt(2), cache_implementation="static", **how))


@other_layouts
@torch.no_grad()
def test_it_changes_none_in_any_other_layout(family: str) -> None:
    test_a_static_cache_changes_no_logit(family, "dense")


# Families without windows, as transformers has it.
@pytest.mark.parametrize(
    ("family", "backend"),
    [("llama", "fp8"), ("gpt_neox", "fp8"), ("gpt2", "fp8"), ("llama", "hqq"), ("llama", "quanto")],
)
@caches_of_all_tokens
@torch.no_grad()
def test_a_quantized_cache_loses_no_more_than_in_gated(family: str, kv: str, backend: str) -> None:
    package = {"hqq": "hqq", "quanto": "optimum.quanto"}.get(backend, "torch")
    if not _importable(package):
        pytest.skip(f"no package {package}")
    if backend == "fp8":
        needs_transformers("5.21", "a cache in fp8")
    model = sparse_model(family, kv)
    how = {"cache_implementation": "quantized", "cache_config": {"backend": backend}}
    sparse = generated(model, prompt(2), **how)
    with execution(model, "gated"):
        gated = generated(model, prompt(2), **how)
    assert torch.equal(sparse.sequences, gated.sequences)
    sparse, gated = (torch.stack(output.logits, dim=1) for output in (sparse, gated))
    # Rounding to 8 bits or fewer turns a last bit into a step now and then, so not CLOSE.
    torch.testing.assert_close(sparse, gated, rtol=0, atol=1e-2)
    exact = torch.stack(generated(model, prompt(2)).logits, dim=1)
    assert (sparse - exact).abs().max() > 0.02, "nothing was quantized"


@every_policy
@torch.no_grad()
def test_continuous_batching_is_refused_in_sparse(kv: str) -> None:
    """Its cache is written by attention itself, which skipped tokens do not reach."""
    with pytest.raises(ConfigError, match="got continuous batching"):
        sparse_model("llama", kv)(prompt(), cache=object())


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@caches_of_all_tokens
@torch.no_grad()
def test_continuous_batching_changes_no_logit(family: str, kv: str) -> None:
    model, ids = sparse_model(family, kv), prompt()
    with execution(model, "gated"):
        answers = model.generate_batch(
            ids.tolist(),
            generation_config=GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=16, max_batch_tokens=64, return_logprobs=True
            ),
            progress_bar=False,
        )
    assert len(answers) == 1
    for answer in answers.values():
        assert len(answer.generated_tokens) == 6
        text = torch.tensor([answer.prompt_ids + answer.generated_tokens])
        each = defined(model, text)[0, 10:-1].log_softmax(-1).gather(1, text[0, 11:, None])
        torch.testing.assert_close(torch.tensor(answer.logprobs), each.squeeze(1), **CLOSE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs a CUDA stream")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@caches_of_all_tokens
@torch.no_grad()
def test_an_offloaded_cache_changes_no_logit(family: str, kv: str, kind: str) -> None:
    model = sparse_model(family, kv).to("cuda")
    how = {"cache_implementation": kind, "disable_compile": True}
    check_logits(model, generated(model, prompt(2).to("cuda"), **how))


def _importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
