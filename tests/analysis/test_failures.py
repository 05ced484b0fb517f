from typing import Any

import pytest

from skipgpt.analysis.failures import failures


def _lines(count: int = 10, **changes: Any) -> list[dict[str, Any]]:
    routed = {"attn": [0.9, 0.2, 0.7, 1.0], "mlp": [0.8, 0.95, 0.4, 1.0]}
    line = {"lm_loss": 2.6, "sparsity": 0.25, "sparsity_swing": 0.01, "keep": routed} | changes
    return [{"step": 10 * (n + 1), **line} for n in range(count)]


def _names(lines: list[dict[str, Any]], target: float = 0.25, dense: float | None = 2.4) -> Any:
    return [each.name for each in failures(lines, 100, target, dense)]


def test_a_healthy_run_shows_no_failure() -> None:
    assert _names(_lines()) == []


@pytest.mark.parametrize(
    ("changes", "name", "remedy"),
    [
        ({"lm_loss": 4.0}, "loss", "temperature_end"),
        ({"sparsity_swing": 0.08}, "swing", "alpha"),
        ({"sparsity": 0.31}, "missed", "alpha"),
        ({"sparsity": 0.19}, "missed", "alpha"),
        ({"keep": {"attn": [1.0, 0.0, 1.0], "mlp": [0.995, 1.0, 1.0]}}, "collapsed", "rate"),
    ],
)
def test_each_failure_is_named_alone_and_says_what_to_do(
    changes: dict[str, Any], name: str, remedy: str
) -> None:
    lines = _lines(**changes)
    assert _names(lines) == [name]
    assert remedy in failures(lines, 100, 0.25, 2.4)[0].todo


def test_the_first_half_of_a_stage_is_not_judged() -> None:
    bad = {"lm_loss": 9.0, "sparsity": 0.9, "sparsity_swing": 0.5}
    assert _names(_lines(5, **bad)) == []
    assert _names(_lines(8, **bad)) == ["loss", "swing", "missed"]


def test_a_line_or_two_are_not_judged() -> None:
    assert _names(_lines(7, lm_loss=9.0, sparsity=0.9)) == []


def test_a_failure_that_has_passed_is_not_reported() -> None:
    lines = _lines(20, lm_loss=9.0, sparsity=0.6)[:15] + _lines(20)[15:]
    assert [f.name for f in failures(lines, 200, 0.25, 2.4)] == []


def test_a_high_loss_at_a_high_target_is_no_sign_of_anything() -> None:
    assert _names(_lines(lm_loss=4.5, sparsity=0.6), target=0.6) == []


def test_without_a_dense_loss_none_is_too_high() -> None:
    assert _names(_lines(lm_loss=9.0), dense=None) == []


def test_lines_of_single_steps_show_a_swing_from_one_to_the_next() -> None:
    lines = _lines()
    for n, line in enumerate(lines):
        del line["sparsity_swing"]
        line["sparsity"] = 0.25 + 0.07 * (-1) ** n
    assert _names(lines) == ["swing"]


def test_a_target_of_nothing_is_no_collapse() -> None:
    keep = {"attn": [1.0, 1.0], "mlp": [1.0, 1.0]}
    assert _names(_lines(sparsity=0.0, keep=keep), target=0.0) == []


def test_lines_of_an_older_run_are_judged_by_what_they_hold() -> None:
    old = {"step": 90, "loss": 3.0, "lm_loss": 2.6, "sparsity": 0.4}
    assert _names([old] * 3) == ["missed"]
    assert _names([{"step": 90, "lm_loss": None, "sparsity": 0.25}] * 3) == []
