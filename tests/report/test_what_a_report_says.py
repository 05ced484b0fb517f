"""The same report as a page, Markdown, JSON and pictures."""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from made_report import WORDS, made, read_bits, warned
from skipgpt.errors import ConfigError, MissingExtraError
from skipgpt.report import content
from skipgpt.report.charts.svg import Axis, Line, line_chart, tick_step
from skipgpt.report.content import packed_bits
from skipgpt.report.markup import amount, embedded, percent, signed
from skipgpt.report.pages.page import to_html
from skipgpt.report.pages.page_frame import filled
from skipgpt.report.run_files import read_run
from skipgpt.report.side_by_side import SideBySide, names
from skipgpt.report.writing import format_of, rendered

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Markup(HTMLParser):
    """Whether every element of a page is closed where it has to be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of SVG."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("tokens", [2, 7, 8, 9])
def test_packed_decisions_come_back(tokens: int) -> None:
    keep = torch.rand(3, 2, tokens) > 0.5
    assert torch.equal(read_bits(packed_bits(keep), keep.shape), keep)
    assert torch.equal(content.read_bits(packed_bits(keep), keep.shape), keep)


def test_surprisal_is_rounded_to_three_digits_and_null_where_there_is_none() -> None:
    report = made()
    given = torch.full_like(report.surprisal, 1.23456)
    given[0], given[1] = torch.nan, 0.00049
    told = json.loads(rendered(dataclasses.replace(report, surprisal=given), "json"))["text"]
    assert told["surprisal"][:3] == [None, 0.0, 1.235]


def test_the_json_is_json_and_holds_the_decisions_of_every_stop() -> None:
    report = made()
    plain = json.loads(rendered(report, "json"))
    assert plain["layers"] == 3
    assert plain["text"]["pieces"] == list(report.text.pieces)
    for stop, there in zip(report.stops, plain["dial"], strict=True):
        assert torch.equal(read_bits(there["keep"], stop.keep.shape), stop.keep)
        assert there["sparsity"] == stop.measured.sparsity
    assert plain["routed"]["sparsity"] == plain["dial"][plain["at"]]["sparsity"]
    assert plain["run"]["metrics"][0]["step"] == 1


def test_only_the_first_tokens_are_carried_but_all_are_counted() -> None:
    report = dataclasses.replace(made(), shown=10)
    plain = report.to_dict()
    assert (plain["text"]["tokens"], plain["text"]["shown"]) == (len(WORDS) * 4, 10)
    assert len(plain["text"]["pieces"]) == len(plain["text"]["surprisal"]) == 10
    keep = read_bits(plain["dial"][0]["keep"], (3, 2, 10))
    assert torch.equal(keep, report.stops[0].keep[..., :10])
    assert plain["routed"] == made().to_dict()["routed"]


@pytest.mark.parametrize("dial", [(0.25,), (0.0, 0.5)])
def test_a_page_is_well_formed_and_one_file(dial: tuple[float, ...]) -> None:
    report = warned(made(dial=dial), "watch out")
    several = SideBySide.of("two", {"a": report, "b": made()})
    for made_page in (rendered(report, "html"), rendered(several, "html")):
        page = made_page.decode()
        assert Markup(page).open == []
        assert "{{" not in page
        for reference in ("http:", "https:", "url(", "@import", " src=", "<iframe", "<object"):
            assert reference not in page, reference


def test_the_same_report_gives_the_same_files() -> None:
    for form in ("html", "md", "json", "svg"):
        assert rendered(made(), form) == rendered(made(), form)


def test_embedded_json_is_read_back_and_holds_nothing_that_html_reads() -> None:
    value = {"</script>": ["<!--", "]]>", "&amp;", "\u2028\u2029", "\ud800", "\x00", "é"]}
    text = embedded(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_half_a_surrogate_pair_does_not_stop_a_page() -> None:
    report = made(["a", "\ud800", "b"] * 6)
    for form in ("html", "md", "json"):
        assert rendered(report, form)


def test_what_is_filled_in_is_not_filled_again() -> None:
    assert filled("{{a}} {{b}}", {"a": "{{b}}", "b": "\\1 $x"}) == "{{b}} \\1 $x"


def test_markdown_holds_the_numbers_and_every_table() -> None:
    report = made([*WORDS * 3, "``` fence", "|"], title="a | b")
    text = rendered(warned(report, "watch out"), "md").decode()
    assert text.startswith("# a \\| b\n")
    for table in report.tables:
        assert f"**{table.question}**" in text
    assert f"{report.measured.nll_per_token:.3f}" in text
    assert percent(report.measured.sparsity["module"]) in text
    assert "Warning: watch out" in text
    assert text.rstrip().endswith("````")


def test_the_share_of_seconds_is_told_where_it_was_measured() -> None:
    report, other = made(WORDS * 3), made(WORDS * 3)
    both = SideBySide.of("two", {"a": report, "b": other})
    for kind, name in (("md", "skipped, time"), ("html", "of the seconds of a forward")):
        assert name not in rendered(report, kind).decode()
        assert name not in rendered(both, kind).decode()
    for each in (report, other):
        each.measured.sparsity["time"] = 0.1234
    for kind, name in (("md", "skipped, time"), ("html", "of the seconds of a forward")):
        for each in (report, both):
            text = rendered(each, kind).decode()
            assert name in text
            assert "12.3%" in text


def test_closeness_is_in_summary_table_curve_markdown_and_json() -> None:
    report = made()
    close = report.measured.closeness
    assert (close.kl_per_token, close.agreement) == (0.0625, 0.875)
    page, text = (rendered(report, form).decode() for form in ("html", "md"))
    for key, value, shown in (("kl_per_token", "0.0625", "0.062"), ("agreement", "0.875", "87.5%")):
        assert f'<data data-key="routed.closeness.{key}" value="{value}">{shown}</data>' in page
    assert "Agreement with the dense base against budget" in page
    assert "| KL to dense, nats per token | 0.062 |" in text
    assert "| top-1 agreement with dense | 87.5% |" in text
    table = report.table("stress")
    assert table.column("KL to dense") == [0, 0, 0.0625, 0.25, 0.5625]
    assert table.column("agreement") == [1, 1, 0.875, 0.75, 0.625]
    plain = json.loads(rendered(report, "json"))
    assert plain["routed"]["closeness"] == {**vars(close)}
    assert plain["dense"]["closeness"] is None


def test_a_report_without_closeness_leaves_it_out() -> None:
    report = made()
    stops = tuple(
        dataclasses.replace(stop, measured=dataclasses.replace(stop.measured, closeness=None))
        for stop in report.stops
    )
    older = dataclasses.replace(report, stops=stops)
    page, text = (rendered(older, form).decode() for form in ("html", "md"))
    assert "routed.closeness" not in page
    assert "Agreement with the dense base" not in page
    assert "top-1 agreement with dense" not in text


def test_markdown_of_several_holds_each() -> None:
    several = SideBySide.of("two", {"one": made(), "other": made(layers=2)})
    lines = rendered(several, "md").decode().splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## one", "## other"]
    assert lines.count("### Is routing healthy?") == 2


def test_pictures_are_pictures_of_every_checkpoint() -> None:
    report = made()
    png = rendered(report, "png")
    assert png.startswith(b"\x89PNG")
    assert zlib.crc32(png[12:29]) == int.from_bytes(png[29:33], "big")
    one = ElementTree.fromstring(rendered(report, "svg"))
    two = ElementTree.fromstring(rendered(SideBySide.of("t", {"a": report, "b": made()}), "svg"))
    assert one.tag.endswith("svg")
    height = [float(each.get("height", "0").removesuffix("pt")) for each in (one, two)]
    assert height[1] == 2 * height[0]


def test_a_picture_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[report\]'"):
        rendered(made(), "png")


def test_the_form_is_that_asked_for_or_that_of_the_name() -> None:
    assert format_of(None, None) == "html"
    assert format_of(Path("a/report"), None) == "html"
    assert format_of(Path("a/report.PNG"), None) == "png"
    assert format_of(Path("a/report.html"), "json") == "json"
    for out, asked in ((Path("a.pdf"), None), (None, "pdf")):
        with pytest.raises(ConfigError, match="'pdf'; expected html, md, json, png, svg"):
            format_of(out, asked)


def test_one_checkpoint_is_not_side_by_side() -> None:
    with pytest.raises(ConfigError, match="two or more"):
        SideBySide.of("one", {"a": made()})


def test_names_are_as_short_as_they_can_be_and_differ() -> None:
    assert names(["out/a", "out/b"]) == ["a", "b"]
    assert names(["x/a/checkpoint", "y/a/checkpoint", "y/b/checkpoint"]) == [
        "x/a/checkpoint",
        "y/a/checkpoint",
        "y/b/checkpoint",
    ]
    assert names(["out/a", "out/a", "out/b"]) == ["a (1)", "a (2)", "b"]
    assert names(["x/a", "y/a", "x/a"]) == ["x/a (1)", "y/a", "x/a (2)"]


def test_a_chart_breaks_off_where_a_value_is_missing() -> None:
    points = [(0, 1.0), (1, float("nan")), (2, 3.0), (3, 4.0)]
    chart = line_chart("a <b>", [Line("l", "one", points)], Axis("x"), Axis("y"))
    (path,) = [part for part in chart.split("<path ") if part.startswith('class="line')]
    assert path.split('d="')[1].count("M") == 2
    assert "a &lt;b&gt;" in chart
    assert line_chart("none", [Line("l", "one", [])], Axis("x"), Axis("y")) == ""


def test_a_chart_of_equal_values_has_an_axis() -> None:
    assert "NaN" not in line_chart(
        "flat", [Line("l", "one", [(0, 0.0), (0, 0.0)])], Axis("x"), Axis("y")
    )
    assert tick_step(0, 1) == pytest.approx(0.2)
    assert tick_step(0, 0.81) == pytest.approx(0.2)


def test_commands_in_a_warning_are_code_and_nothing_else_is_markup() -> None:
    page = to_html(warned(made(), "use `skipgpt export <b>`, `"))
    assert "use <code>skipgpt export &lt;b&gt;</code>, `" in page


def test_numbers_for_people() -> None:
    assert [amount(n) for n in (999, 1000, 16446272, 2.5e12)] == [
        "999",
        "1.00 k",
        "16.4 M",
        "2.50 T",
    ]
    assert amount(3072, "B") == "3.07 kB"
    assert percent(-0.00001) == "0.0%"
    assert signed(-0.5) == "\N{MINUS SIGN}0.500"


def test_a_run_without_files_says_nothing_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    assert read_run(tmp_path) == {}
    assert "holds no run.json" in to_html(dataclasses.replace(made(), run={}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lm_loss": NaN}\n{"step": 2, "lm')
    (tmp_path / "run.json").write_text("{broken")
    found = read_run(tmp_path)
    assert found == {"metrics": [{"step": 1, "lm_loss": None}]}
    report = dataclasses.replace(made(), run=found)
    assert json.loads(rendered(report, "json"))["run"] == found
    assert rendered(report, "html")
