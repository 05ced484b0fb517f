import importlib.util
from pathlib import Path

from skipgpt.benchmark.executions import EXECUTIONS

ROOT = Path(__file__).parents[1]


def test_the_table_of_speed_is_that_of_the_recorded_results() -> None:
    found = importlib.util.spec_from_file_location("summary", ROOT / "benchmarks/summary.py")
    summary = importlib.util.module_from_spec(found)
    found.loader.exec_module(summary)
    table = summary.markdown(ROOT / "benchmarks/results/cpu")
    assert table in (ROOT / "docs/benchmarking.md").read_text()


def test_the_page_says_of_each_execution_what_help_says() -> None:
    page = (ROOT / "docs/benchmarking.md").read_text()
    for name, words in EXECUTIONS.items():
        assert f"| `{name}` | {words}" in page, name
