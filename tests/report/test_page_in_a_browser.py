"""The page in a real browser: from disk, without a network."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from browser import END, FOCUSED, RIGHT, agrees, opened
from made_report import WORDS, made, read_bits, warned
from skipgpt.report.pages.page import to_html
from skipgpt.report.pages.side_by_side_page import to_html as side_by_side_html
from skipgpt.report.side_by_side import SideBySide


def test_only_the_file_is_read_and_the_console_stays_silent(tmp_path: Path) -> None:
    page = opened(to_html(made()), tmp_path)
    assert page.requests.count(page.address) == 1
    assert all(url == page.address or url.startswith("data:") for url in page.requests)
    assert page.console == []
    assert page.run("return performance.getEntriesByType('resource').length") == 0


def test_every_number_is_that_of_the_json(tmp_path: Path) -> None:
    report = made()
    plain = json.loads(json.dumps(report.to_dict()))
    page = opened(to_html(report), tmp_path)
    found = page.run(
        "return [...document.querySelectorAll('data[data-key]')]"
        ".map((e) => [e.dataset.key, e.value, e.textContent])"
    )
    assert {"routed.nll_per_token", "routed.sparsity.module", "excess_nll"} <= {f[0] for f in found}
    for key, value, shown in found:
        there = plain
        for name in key.split("."):
            there = there[name]
        assert float(value) == there, key
        assert agrees(shown.lstrip("+\N{MINUS SIGN}"), abs(there)), (key, shown, there)


def test_every_table_is_that_of_the_json(tmp_path: Path) -> None:
    report = made()
    page = opened(to_html(report), tmp_path)
    shown = page.run(
        "return [...document.querySelectorAll('[data-table]')].map((table) => [table.dataset.table,"
        "[...table.tBodies[0].rows].map((row) => [...row.cells].map((c) => c.textContent))])"
    )
    tables = report.to_dict()["tables"]
    assert {name for name, _ in shown} == tables.keys()
    for name, rows in shown:
        assert len(rows) == len(tables[name]["rows"]) > 0
        for cells, values in zip(rows, tables[name]["rows"], strict=True):
            for cell, value in list(zip(cells, values, strict=True))[name == "stress" :]:
                if isinstance(value, str):
                    assert cell == value
                else:
                    assert agrees(cell, value), (name, cell, value)


def test_the_knee_is_marked_in_table_and_curve(tmp_path: Path) -> None:
    report = made()
    knee = report.table("stress").facts["knee"]
    page = opened(to_html(report), tmp_path)
    (row,) = page.all("[data-table='stress'] tr.marked")
    assert "knee" in row.text
    assert agrees(row.find_elements("css selector", "td")[0].text, knee)
    assert "knee" in page.texts(".chart text")


def test_the_dial_recolours_text_and_maps_exactly(tmp_path: Path) -> None:
    report = made()
    plain = report.to_dict()
    page = opened(to_html(report), tmp_path)
    shape = (3, 2, len(WORDS) * 4)
    for stop, there in enumerate(plain["dial"]):
        page.run(
            "const d = document.querySelector('[data-dial]'); d.value = arguments[0];"
            "d.dispatchEvent(new Event('input'))",
            stop,
        )
        keep = read_bits(there["keep"], shape)
        ran = keep.sum((0, 1)).tolist()
        shades = page.run(
            "const tokens = document.querySelectorAll('[role=option]');"
            "return [...tokens].map((token) => +token.className.slice(1))"
        )
        for (few, pale), (many, strong) in pairwise(sorted(zip(ran, shades, strict=True))):
            assert pale == strong if few == many else pale <= strong
        assert len(set(shades)) > 1 or len(set(ran)) == 1
        for kind, name in enumerate(("attn", "mlp")):
            assert _map(page, name, shape[2]) == keep[:, kind].tolist()
        said = {e.get_attribute("data-value"): e.text for e in page.all("[data-stop] [data-value]")}
        assert agrees(said["asked"], there["asked"])
        assert agrees(said["module"], there["sparsity"]["module"])
        assert agrees(said["nll_per_token"], there["nll_per_token"])
        assert agrees(said["excess"], there["nll_per_token"] - plain["dense"]["nll_per_token"])


def _map(page, kind: str, tokens: int) -> list[list[bool]]:
    """Which cells of a map are filled, by its pixels."""
    return page.run(
        """
        const canvas = document.querySelector(`[data-map='${arguments[0]}']`);
        const pen = canvas.getContext("2d");
        const plot = canvas.width - 84;
        const bare = document.createElement("canvas").getContext("2d");
        bare.fillStyle = getComputedStyle(canvas).getPropertyValue("--none");
        bare.fillRect(0, 0, 1, 1);
        const none = bare.getImageData(0, 0, 1, 1).data.join();
        return [0, 1, 2].map((layer) => Array.from({ length: arguments[1] }, (_, token) =>
          // a quarter into the cell, beside the line at the chosen token
          pen.getImageData(24 + Math.round(((token + 0.25) * plot) / arguments[1]),
            layer * 12 + 5, 1, 1).data.join() !== none));
        """,
        kind,
        tokens,
    )


def test_a_token_shows_its_column_of_modules_and_its_surprisal(tmp_path: Path) -> None:
    report = made()
    page = opened(to_html(report), tmp_path)
    keep = report.stops[report.at].keep
    surprisal = report.to_dict()["text"]["surprisal"]
    page.run("document.querySelector('[role=option]').focus()")
    for number in range(18):
        if number:
            page.press(RIGHT)
        cells = page.run(
            "return [...document.querySelectorAll('.column i')].map((c) => c.classList[1])"
        )
        wanted = keep[:, :, number].T.flatten().tolist()
        assert cells == ["kept" if ran else "skipped" for ran in wanted]
        ran, told = (page.one(f"[data-token] [data-value={n}]").text for n in ("ran", "surprisal"))
        assert ran == f"{sum(wanted)} of 6 modules"
        if surprisal[number] is None:
            assert told == "none: first of its row"
        else:
            assert told == f"{surprisal[number]:.3f} nats"


def test_pointing_at_a_token_or_a_map_shows_it(tmp_path: Path) -> None:
    page = opened(to_html(made()), tmp_path)
    over = "arguments[0].dispatchEvent(new MouseEvent('mouseover', { bubbles: true }))"
    page.run(over, page.all("[role=option]")[5])
    assert page.one("[data-token] .place").text == "row 1, token 6"
    page.run(
        "const map = document.querySelector('[data-map]'); const box = map.getBoundingClientRect();"
        "map.dispatchEvent(new MouseEvent('click', { clientX: box.left + 24 + box.width - 85 }))"
    )
    assert page.run(FOCUSED) == len(WORDS) * 4 - 1


HOSTILE = (
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "<!--",
    "&lt;b&gt;",
    "\u2028\u2029",
    "\"'`${window.broken = 3}{{title}}",
    "\u202ereversed",
    "\x00\x1b[31m",
    "\ufeff",
)


def test_a_text_cannot_become_markup(tmp_path: Path) -> None:
    worst = " ".join(HOSTILE[:6])
    report = warned(made(HOSTILE * 4, title=worst), worst)
    report.facts["sources"] = [worst]
    report.facts["notes"] = [worst]
    report.checkpoint["base"] = worst
    report.run["run"]["config"] = {worst: worst}
    report.run["run"]["command"] = [worst]
    page = opened(to_html(report), tmp_path)
    assert page.console == []
    assert page.run("return window.broken === undefined")
    assert page.all("img") == []
    assert len(page.all("script")) == 2  # the data, and the page's own
    assert page.run("return document.querySelector('h1').textContent") == worst
    shown = page.texts("[role=option]")
    assert shown[:6] == list(HOSTILE[:6])
    assert shown[6:9] == [
        "\N{REPLACEMENT CHARACTER}reversed",
        "␀␛[31m",
        "\N{REPLACEMENT CHARACTER}",
    ]


def test_without_a_dial_there_is_none_and_it_is_said(tmp_path: Path) -> None:
    page = opened(to_html(made(dial=(0.25,))), tmp_path)
    assert page.console == []
    assert page.all("[data-dial]") == []
    assert "not calibrated, so its sparsity cannot be changed" in page.one("main").text
    assert page.one("[data-token] [data-value=ran]").text.endswith("of 6 modules")


def test_side_by_side_each_checkpoint_has_its_own_dial(tmp_path: Path) -> None:
    reports = {"one": made(), "other": made(WORDS * 2, layers=5, seed=1)}
    page = opened(side_by_side_html(SideBySide.of("two", reports)), tmp_path)
    assert page.console == []
    first, second = page.all("[data-dial]")
    page.run("arguments[0].focus()", second)
    page.press(END)
    assert (first.get_attribute("value"), second.get_attribute("value")) == ("1", "3")
    assert len(page.all("[data-reader] [role=option]")) == len(WORDS) * 6
    ids = page.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    plain = SideBySide.of("two", reports).to_dict()
    for key, value in page.run(
        "return [...document.querySelectorAll('td data')].map((e) => [e.dataset.key, e.value])"
    ):
        start, name, rest = key.split("/")
        there = plain[start][name]
        for part in rest.split("."):
            there = there[part]
        assert float(value) == there


def test_side_by_side_no_two_lines_of_a_chart_look_alike(tmp_path: Path) -> None:
    reports = {f"run {n}": made(layers=3 + n, seed=n) for n in range(5)}
    page = opened(side_by_side_html(SideBySide.of("five", reports)), tmp_path)
    looks = """
        return [...document.querySelectorAll("#cost .chart, #skips .chart")].map((chart) =>
          [".legend .line", "figcaption + svg .line"].map((lines) =>
            [...chart.querySelectorAll(lines)].map((line) => {
              const style = getComputedStyle(line);
              return `${style.stroke} ${style.strokeDasharray}`;
            })));
        """
    loss, *depth = (legend for legend, lines in page.run(looks) if legend == lines)
    assert len(set(loss)) == len(loss) == 5
    assert [len(set(each)) for each in depth if each] == [10]


def test_a_long_text_of_a_deep_model_is_small_and_complete(tmp_path: Path) -> None:
    report = made(WORDS * 400, layers=32, row=512, dial=[n / 10 for n in range(9)])
    html = to_html(report)
    assert len(html.encode()) < 4_000_000
    page = opened(html, tmp_path)
    assert len(page.all("[role=option]")) == 4096
    assert "The first 4,096 tokens are shown." in page.one("#skips").text
