"""Colours of compute on a terminal, and text that cannot steer it."""

import io
import re

import pytest

from skipgpt.generation.live import TokenRun
from skipgpt.report.live_text import column_after, live_text
from skipgpt.report.terminal import STEPS, Scale, escape_controls, has_colour, in_a_line

COLOUR = re.compile("\033\\[[\\d;]*m")
ESCAPE = re.compile("\033(?:\\[[\\d;]*[A-Za-z]|[78])")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "60", "LINES": "10"}.items():
        monkeypatch.setenv(name, value)


def _luminance(colour: int) -> float:
    assert 16 <= colour < 232
    levels = (0, 95, 135, 175, 215, 255)
    parts = [levels[(colour - 16) // by % 6] / 255 for by in (36, 6, 1)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_more_compute_is_lighter_and_every_step_is_legible() -> None:
    backs = [_luminance(back) for back, _ in STEPS]
    assert backs == sorted(set(backs))
    for back, front in STEPS:
        low, high = sorted((_luminance(back), _luminance(front)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_a_scale_spreads_the_shares_of_a_text_over_all_colours() -> None:
    scale = Scale.around(0.25)
    assert scale.low == 0.5
    starts = [scale.paint("x", 0.5 + n / 100)[:-5] for n in range(51)]
    assert len(set(starts)) == len(STEPS)
    assert scale.paint("x", 0.1) == scale.paint("x", 0.5)
    assert scale.paint("x", 1.0).startswith("\033[38;5;16;48;5;195m")
    assert Scale.around(0.0).low == Scale.around(0.1).low == 0.5
    assert Scale.around(0.8).low == 0.0


def test_painting_adds_colour_only_and_none_around_line_breaks() -> None:
    painted = Scale().paint("a\n\n b\n", 0.5)
    assert COLOUR.sub("", painted) == "a\n\n b\n"
    assert [line and line[-4:] for line in painted.split("\n")] == ["\033[0m", "", "\033[0m", ""]
    assert Scale().paint("a", None) == "a"


def test_a_legend_shows_the_ends_and_every_colour() -> None:
    legend = Scale.around(0.25).legend()
    assert COLOUR.sub("", legend) == "modules run by a token: 50% or less " + " " * 14 + " 100%"
    assert len(set(COLOUR.findall(legend))) == len(STEPS) + 1
    assert "token: 0% " in Scale.around(0.6).legend()


@pytest.mark.parametrize(
    "text", ["\033[2J", "\x9b31m", "\r", "\x07", "\x7f", "\u202e", "\ud800", "\0"]
)
def test_tokens_cannot_steer_the_terminal(text: str) -> None:
    for shown in (escape_controls(text), in_a_line(text), COLOUR.sub("", Scale().paint(text, 0.5))):
        assert shown.isascii()
        assert shown.isprintable()
        assert shown.startswith("\\")


def test_harmless_text_stays_as_it_is() -> None:
    text = "a\tb\nc\u00a0é 日本 👩\u200d💻"
    assert escape_controls(text) == text
    assert in_a_line("a b\n\t") == "a·b⏎→"


@pytest.mark.parametrize(
    ("settings", "terminal", "piped"),
    [
        ({}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
    ids=str,
)
def test_the_environment_has_a_say_in_colours(
    settings: dict[str, str], terminal: bool, piped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert has_colour(Terminal()) == terminal
    assert has_colour(io.StringIO()) == piped


TOKENS = [
    TokenRun("def", True, (True, True), (True, False)),
    TokenRun(" f\n", False, (True, False), (False, False)),
    TokenRun("\033[2J", False, (True, True), (True, True)),
    TokenRun("end", False),
]


def _written(out: io.StringIO, status: io.StringIO) -> None:
    with live_text(out, status, Scale()) as tell:
        for token in TOKENS:
            tell(token)


def test_a_pipe_gets_the_text_alone() -> None:
    out, status = io.StringIO(), Terminal()
    _written(out, status)
    assert out.getvalue() == "def f\n\033[2Jend"
    assert status.getvalue() == ""


def test_a_terminal_gets_colours_and_the_sparsity_so_far() -> None:
    out, status = Terminal(), Terminal()
    _written(out, status)
    assert COLOUR.sub("", out.getvalue()) == "def f\n\\x1b[2Jend"
    assert out.getvalue().endswith("\033[0mend")
    said = re.findall(r"\d+ tokens?, [\d.]+% of modules skipped so far", status.getvalue())
    assert said[:3] == [
        "1 token, 25.0% of modules skipped so far",
        "2 tokens, 50.0% of modules skipped so far",
        "3 tokens, 33.3% of modules skipped so far",
    ]


def test_the_status_line_is_reserved_and_given_back_whatever_happens() -> None:
    out, status = Terminal(), Terminal()

    def interrupted() -> None:
        with live_text(out, status, Scale()) as tell:
            tell(TOKENS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    asked = ESCAPE.findall(status.getvalue())
    assert asked.count("\033[1;9r") == asked.count("\033[r") == 1
    assert asked.index("\033[1;9r") < asked.index("\033[r")
    assert asked[-2:] == ["\033[2K", "\0338"]
    assert out.getvalue().endswith("\n")


def test_no_status_line_is_drawn_where_the_next_letter_would_wrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "4")
    out, status = Terminal(), Terminal()
    with live_text(out, status, Scale()) as tell:
        for text in ("abc", "d", "e"):
            tell(TokenRun(text, False, (True,), (False,)))
    assert re.findall(r"\d+ to", status.getvalue()) == ["1 to", "3 to"]


@pytest.mark.parametrize(
    ("text", "column"),
    [("ab", 2), ("abcdefgh", 8), ("abcdefghi", 1), ("日本", 4), ("abcdefg日", 2), ("e\u0301", 1)],
)
def test_the_column_is_that_of_the_cursor(text: str, column: int) -> None:
    assert column_after(0, text, 8) == column
    assert column_after(5, "\n" + text, 8) == column
    assert column_after(0, "a\tb", 20) == 9
