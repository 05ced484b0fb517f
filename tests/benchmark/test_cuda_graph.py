"""Decoding on a static cache, and when it can be captured; captures themselves need a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from cases import base, routed
from plain_kernels import PLAIN
from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.subject import subject_of_shape
from skipgpt.benchmark.timing.cuda_graph import StaticDecode, can_capture
from skipgpt.model.surgery import add_routers


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def decoded(decode: StaticDecode, steps: int) -> list[list[int]]:
    """The first token and those of some steps, for each sequence."""
    tokens = [decode.token.clone()]
    for _ in range(steps):
        decode.step()
        tokens.append(decode.token.clone())
    return torch.cat(tokens, 1).tolist()


@pytest.mark.parametrize("build", [base, routed])
def test_a_static_decode_gives_the_tokens_of_generate(build: object) -> None:
    model, ids = build("llama"), torch.randint(1, 257, (2, 7))
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5, pad_token_id=0
    )
    assert decoded(StaticDecode(model, ids, 4), 4) == wanted[:, 7:].tolist()


def test_after_a_reset_the_same_is_decoded_again() -> None:
    decode = StaticDecode(routed("llama"), torch.randint(1, 257, (2, 7)), 4)
    first = decoded(decode, 4)
    assert len({tuple(row) for row in first}) == 2
    decode.reset()
    assert decoded(decode, 4) == first


class _OnGpu(nn.Module):
    """A model that says it is on a GPU."""

    device = torch.device("cuda")
    _can_compile_fullgraph = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def test_what_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, sparse = base("llama"), routed("llama")
    assert not can_capture(dense), "it is on a CPU"
    assert can_capture(_OnGpu(dense))
    assert not can_capture(_OnGpu(sparse)), "it packs in PyTorch, which asks the host"
    monkeypatch.setattr("skipgpt.kernels.select.kernels_for", lambda *_: PLAIN)
    assert can_capture(_OnGpu(sparse))
    assert not can_capture(_OnGpu(routed("llama", kv="skip")))
    assert not can_capture(_OnGpu(add_routers(base("gpt2")).eval()))
    monkeypatch.setattr(_OnGpu, "_can_compile_fullgraph", False)
    assert not can_capture(_OnGpu(dense)), "transformers does not capture it either"


def test_on_a_cpu_the_host_launches() -> None:
    grid = Grid(("decode",), prompt_tokens=(4,), decode_tokens=2, sparsities=(0.5,), repeats=1)
    assert bench(subject_of_shape("llama-tiny"), grid).facts["decode"] == "launched by the host"
