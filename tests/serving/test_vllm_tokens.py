from __future__ import annotations

from pathlib import Path

import served

ROUTERS = (
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {}),
    ("llama", {"decides": "layer"}),
    ("qwen3", {"input": "module_input"}),
)
"""A family and how its routers differ from those of the defaults."""


def test_a_batch_of_mixed_lengths_gives_the_tokens_of_our_own_model(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    model = served.routed_by_margins(folder)
    served.check_ways(folder, model, served.requests(served.prompts(*served.MIXED)), served.WAYS)


def test_every_family_gives_the_tokens_of_our_own_model(tmp_path: Path) -> None:
    asked = served.requests(served.prompts(7, 40, 70, vocabulary=256), 12)
    models, engines = [], []
    for number, (family, router) in enumerate(ROUTERS):
        folder = tmp_path / str(number)
        models.append(served.tiny_routed_by_tokens(family, folder, **router))
        options = {"model": str(folder)} | served.TOGETHER
        engines.append({"options": options, "rounds": [asked]})
    all_answers = served.serve(tmp_path, *engines)
    for case, (answers,), model in zip(ROUTERS, all_answers, models, strict=True):
        right = [served.expected(model, request) for request in asked]
        assert [answer["tokens"] for answer in answers] == right, case
