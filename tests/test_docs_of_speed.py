import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from skipgpt.benchmark.executions import EXECUTIONS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def summary() -> ModuleType:
    found = importlib.util.spec_from_file_location("summary", ROOT / "benchmarks/summary.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_table_of_speed_is_that_of_the_recorded_results(summary: ModuleType) -> None:
    table = summary.markdown(ROOT / "benchmarks/results/cpu")
    assert table in (ROOT / "docs/benchmarking.md").read_text()


def test_a_row_stands_under_what_was_asked_and_its_checkpoint_is_named(
    summary: ModuleType, tmp_path: Path
) -> None:
    cell = {"phase": "decode", "batch_size": 1, "prompt_tokens": 128}
    speed = {"speedup": 1.5, "ideal_speedup": 2.0, "efficiency": 0.75}

    def row(execution: str, sparsity: float, **asked: object) -> dict[str, object]:
        return {**cell, **speed, "execution": execution, "sparsity": sparsity, **asked}

    rows = [
        row("auto", 0.0, asked=0.0, budget="flops"),
        # A quarter of the FLOPs is here nearly 40 % of the modules.
        row("auto", 0.39, asked=0.25, budget="flops"),
        row("auto", 0.12, asked=0.125, budget="modules"),
        row("transformers", 0.0, asked=None, budget=None),
    ]
    document = {"subject": "checkpoint", "base": "HuggingFaceTB/SmolLM2-135M", "rows": rows}
    (tmp_path / "learned").mkdir()
    (tmp_path / "learned/bench.json").write_text(json.dumps(document))
    head, _, auto, plain = summary.markdown(tmp_path).splitlines()
    assert head.endswith("| folder | 0 % | 12.5 % | 25 % of FLOPs |")
    name = "| SmolLM2-135M (checkpoint) | decode"
    skipping = "1.50x of 2.00x, 75%"
    assert auto == f"{name} | auto | 1 | 128 | learned | 1.50x | {skipping} | {skipping} |"
    assert plain == f"{name} | transformers | 1 | 128 | learned | 1.50x |  |  |"


def test_the_page_says_of_each_execution_what_help_says() -> None:
    page = (ROOT / "docs/benchmarking.md").read_text()
    for name, words in EXECUTIONS.items():
        assert f"| `{name}` | {words}" in page, name
