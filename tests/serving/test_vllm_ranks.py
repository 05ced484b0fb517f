from __future__ import annotations

from pathlib import Path

import pytest

import served
from tiny import LONG


@pytest.mark.parametrize("family", ["qwen3", *(["llama"] if LONG else [])])
def test_two_tensor_parallel_ranks_give_the_tokens_of_one(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    model = served.tiny_routed_by_tokens(family, folder)
    asked = served.requests(served.prompts(7, 40, 70, vocabulary=256), 12)
    asked += [request | {"sparsity": 0.75} for request in asked]
    options = {"model": str(folder), "tensor_parallel_size": 2} | served.TOGETHER
    ((answers,),) = served.serve(tmp_path, {"options": options, "rounds": [asked]}, ranks=2)
    for answer, request in zip(answers, asked, strict=True):
        assert answer["tokens"] == served.expected(model, request)
