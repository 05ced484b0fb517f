"""Every piece of advice of the source is executed by a test, or told why it cannot be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from advice_in_source import VALUE, Advice, all_advice
from test_of_commands import ROWS

HERE = Path(__file__).parent
TESTS = HERE.parent

LOST = (
    "distributed/test_several_processes_train_as_one.py: "
    "test_a_run_that_lost_a_process_is_resumed_on_as_many_or_another_number"
)
VLLM = "needs vLLM, which has an environment of its own"
ELSEWHERE = {
    "checkpoint/folder.py": {"upgrade skipgpt": "needs a release that is not written yet"},
    "cli/__init__.py": {
        "running on several processes: got one that ended early": LOST,
        "; the states saved before are kept; the same command with --resume goes on": LOST,
    },
    "errors.py": {"run: pip install 'skipgpt[…]'": "needs a network"},
    "fitting/cache.py": {
        "set SKIPGPT_CACHE to a folder that can be written": "cli/test_streams_and_places.py: "
        "test_without_a_cache_folder_a_fit_is_made_and_a_profile_refused_at_once"
    },
    "model/families/table.py": {
        "see docs/extending.md for what a row needs": "model/test_a_family_of_ones_own.py: "
        "test_all_keep_is_the_base_model_and_so_is_the_model_without_routers"
    },
    "model/loading/gguf.py": {
        "run: llama-gguf-split --merge FIRST.gguf WHOLE.gguf": "needs a program of llama.cpp",
        "upgrade gguf": "needs a release that is not written yet",
    },
    "model/loading/int8.py": {"train with --quantize 8bit for a GPU": "needs a GPU"},
    "serving/vllm/engine_config.py": {
        "use `skipgpt export --static`, or transformers": VLLM,
        "leave --enable-lora out": VLLM,
        "set VLLM_USE_V2_MODEL_RUNNER=0": VLLM,
    },
    "serving/vllm/launch.py": {"see its log above": VLLM},
}
"""Advice that is not executed here: why it cannot be, or the file and the test that executes it."""


@cache
def executed() -> list[tuple[str, str]]:
    """Module and advice of each row of a table, and of each `advised(…)` in these tests."""
    found = [(row.module, row.advice) for row in ROWS]
    for path in sorted(HERE.glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        given = list(_assigned(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "advised",
                "printed",
            ):
                known = {name: value for name, value in given if value.lineno < node.lineno}
                found.append((_text(node.args[0], known), _text(node.args[1], known)))
    return found


def _assigned(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names and what they are given, in the order of lines."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for node in sorted(nodes, key=lambda node: node.lineno):
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            names = target.elts if several else [target]  # type: ignore[attr-defined]
            values = node.value.elts if several else [node.value]  # type: ignore[attr-defined]
            for name, value in zip(names, values, strict=True):
                if isinstance(name, ast.Name):
                    yield name.id, value


def _text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                _text(part.value if isinstance(part, ast.FormattedValue) else part, known)
                for part in parts
            )
        case ast.Name(id=name) if name in known:
            return _text(known[name], known)
    return VALUE


def matches(advice: Advice, module: str, text: str) -> bool:
    """Whether an executed text is this piece of advice, or a part of it."""
    return bool(
        re.fullmatch(_pattern(module), advice.module)
        and (text in advice.text or re.search(_pattern(advice.text), text))
    )


def _pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split(VALUE))


def _places(advice: Advice) -> int:
    """How many places of a module give this advice."""
    return sum((a.module, a.text) == (advice.module, advice.text) for a in all_advice())


@pytest.mark.parametrize("advice", all_advice(), ids=lambda a: f"{a.module}:{a.line}")
def test_each_piece_of_advice_is_executed(advice: Advice) -> None:
    known = advice.text in ELSEWHERE.get(advice.module, {})
    found = [each for each in executed() if matches(advice, *each)]
    assert known or len(found) >= _places(advice), "no test follows this advice"
    assert not (known and found), "it is executed: take it out of ELSEWHERE"


def test_what_is_executed_elsewhere_is_advice_and_has_its_test() -> None:
    given = {(advice.module, advice.text) for advice in all_advice()}
    told = {(module, text) for module, texts in ELSEWHERE.items() for text in texts}
    assert told <= given
    for reason in (reason for texts in ELSEWHERE.values() for reason in texts.values()):
        if ".py: " in reason:
            file, _, test = reason.partition(": ")
            assert f"def {test}(" in (TESTS / file).read_text(encoding="utf-8")


def test_every_row_is_advice_that_the_source_gives() -> None:
    for module, text in executed():
        assert any(matches(advice, advice.module, text) for advice in all_advice()), (module, text)
