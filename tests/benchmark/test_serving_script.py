"""What is said of engines that serve, apart from time."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import skipgpt
from benchmark_scripts import imported

script = imported("serving")


class FakeEngine:
    """An engine that notes its turns; each run makes a request wait longer than the one before."""

    sparsity, ideal = None, True

    def __init__(self, name: str, turns: list[str]) -> None:
        self._name, self._turns, self._waits = name, turns, itertools.count(1)

    def answer(self, prompts: list[list[int]], tokens: int) -> list[Any]:
        assert [len(each) for each in prompts] == [4, 4]
        self._turns.append(self._name)
        wait = next(self._waits)
        return [
            SimpleNamespace(first_token_latency=wait, first_token_ts=1.0, last_token_ts=1.0 + wait)
        ] * len(prompts)


def test_engines_take_turns_in_a_rotating_order_and_timed_rounds_alone_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("skipgpt.benchmark.timing.clock.SHORT", 0.0)
    turns: list[str] = []
    engines = {name: FakeEngine(name, turns) for name in ("dense", "a", "b")}
    load = script.Load(2, 4, new_tokens=3, cached=False)
    rows = load.rows(engines, torch.arange(8), {0.0: 1.0}, repeats=3)
    assert turns == ["dense", "a", "b", "a", "b", "dense", "b", "dense", "a", "dense", "a", "b"]
    assert [row["engine"] for row in rows] == ["dense", "a", "b"]
    # Of the waits 1, 2, 3, 4 the first is not timed; two tokens follow the first one.
    assert {row["time_to_first_token_seconds"] for row in rows} == {3}
    assert {row["inter_token_seconds"] for row in rows} == {1.5}
    assert all(len(row["seconds"]) == 3 for row in rows)


@pytest.mark.parametrize("cached", [False, True])
def test_the_ideal_is_counted_from_the_routes_of_the_prompts(cached: bool, tmp_path: Path) -> None:
    script.write_models("llama-tiny", 0.4, tmp_path)
    skipgpt.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "routed").eval()
    table = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").get_input_embeddings().weight
    ids = torch.randint(1, 256, (12,), generator=torch.Generator().manual_seed(1))
    # The embedding holds which modules a token keeps: attention and MLP of each layer in turn.
    keep = (table[ids, :4] > 0).float().mean(0).tolist()
    width, mlp, key_width, vocabulary, rank = 32, 88, 16, 256, 16

    def flops(keep: list[float] | None, tokens: int, attended: float) -> float:
        attn = sum(keep[::2]) if keep else 2.0
        each = 2 * 2 * width * key_width + attn * 2 * width**2
        each += (sum(keep[1::2]) if keep else 2.0) * 3 * width * mlp
        if keep:
            each += 4 * 2 * (width + 1)  # routers, with biases
            each += sum(1 - share for share in keep) * (2 * width * rank + width)  # stand-ins
        core = 4 * attn * width * attended
        return 2 * tokens * (2 * each + core) + 2 * 2 * vocabulary * width  # two sequences

    def all_of(keep: list[float] | None) -> float:
        # A prompt of 6 gives the first of 3 tokens; steps half way attend to 8.
        return 3 * flops(keep, 1, 8) if cached else flops(keep, 6, 3.5) + 2 * flops(keep, 1, 8)

    load = script.Load(2, 6, new_tokens=3, cached=cached)
    assert load.ideal(model, ids, 0.4) == pytest.approx(all_of(None) / all_of(keep))
    assert load.ideal(model, ids, 0.0) == 1.0
