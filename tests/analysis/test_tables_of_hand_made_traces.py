import json
import math

import pytest
import torch

import made
from skipgpt.analysis import (
    Table,
    depth_profiles,
    keep_by_module,
    keep_by_position,
    keep_by_token,
    norms_by_layer,
    redundancy,
    routing_health,
    side_by_side,
    stress,
)
from skipgpt.analysis.stress import knee_of
from skipgpt.analysis.tokens import KINDS, kinds_of
from skipgpt.errors import ConfigError

ON, OFF = torch.ones(1, 8), torch.zeros(1, 8)
HALF = torch.tensor([[1.0, 0, 1, 0, 1, 0, 1, 0]])


def test_redundancy_names_the_module_that_turns_the_stream_least() -> None:
    cosine = torch.empty(2, 2, 4)
    cosine[:, 0], cosine[0, 1], cosine[1, 1] = 0.9, 0.5, 0.7
    layer_cosine = torch.tensor([[0.4] * 4, [0.8] * 4])
    table = redundancy(made.dense(4, cosine=cosine, layer_cosine=layer_cosine))
    assert table.column("attn cosine") == pytest.approx([0.9, 0.9])
    assert table.column("mlp cosine") == pytest.approx([0.5, 0.7])
    assert table.column("block influence") == pytest.approx([0.6, 0.2])
    assert table.facts == pytest.approx({"attn": 0.9, "mlp": 0.6})
    assert "attention turns the stream less than the MLP" in table.findings[0]
    assert "in 2 of 2 layers" in table.findings[0]
    assert "Layer 2 does least" in table.findings[1]


def test_redundancy_says_so_where_the_mlp_is_the_redundant_one() -> None:
    cosine = torch.empty(1, 2, 4)
    cosine[:, 0], cosine[:, 1] = 0.2, 0.9
    finding = redundancy(made.dense(4, 1, cosine=cosine)).findings[0]
    assert "the MLP turns the stream less than attention" in finding
    assert "in 0 of 1 layers" in finding


def test_keep_rates_and_the_ratio_that_they_imply() -> None:
    trace = made.routed(torch.cat([ON, OFF]), torch.cat([HALF, HALF]))
    table = keep_by_module(trace)
    assert table.rows == ((1, 1.0, 0.5), (2, 0.0, 0.5))
    assert table.facts == {"attn": 0.5, "mlp": 0.5, "ratio": 1.0}
    unlike = keep_by_module(made.routed(HALF, ON))
    assert unlike.facts["ratio"] == 0.5
    assert "attention is skipped more" in unlike.findings[0]
    assert "the MLP is skipped more" in keep_by_module(made.routed(ON, HALF)).findings[0]


def test_a_rate_that_rises_along_the_row_is_said_to_rise() -> None:
    rises = torch.tensor([[0.0] * 20 + [1.0] * 20])
    table = keep_by_position(made.routed(rises, 1 - rises), width=4, points=1000)
    assert table.column("attn keep rate")[0] == 0
    assert table.column("attn keep rate")[-1] == 1
    assert (
        "Attention rises: 0.0% of tokens in the first quarter of a row, 100.0%"
        in (table.findings[0])
    )
    assert "The MLP falls: 100.0%" in table.findings[1]
    flat = keep_by_position(made.routed(torch.ones(1, 40), torch.ones(1, 40)))
    assert all("stays" in finding for finding in flat.findings)
    assert math.isnan(flat.facts["attn rank correlation"])


def test_the_sliding_mean_is_of_the_width_that_is_given() -> None:
    once = torch.zeros(1, 400)
    once[0, 200] = 1
    table = keep_by_position(made.routed(once, once), width=100, points=1000)
    rates = dict(zip(table.column("position"), table.column("attn keep rate"), strict=True))
    assert max(rates.values()) == pytest.approx(1 / 100)
    assert sum(rate > 0 for rate in rates.values()) == 100
    # The window that ends with the token, and the one that begins with it.
    assert next(place for place, rate in rates.items() if rate > 0) == 200 - 99 + 50
    assert table.facts["width"] == 100


def test_positions_are_means_over_rows_however_long_each_is() -> None:
    of = made.text([f"t{n}" for n in range(12)], rows=[8, 4])
    keep = torch.tensor([[1.0] * 8 + [0.0] * 4])
    table = keep_by_position(made.routed(keep, keep, of=of), width=1)
    assert table.column("attn keep rate") == [0.5] * 4 + [1.0] * 4


def test_compute_that_follows_surprisal_correlates_with_it() -> None:
    surprisal = torch.tensor([math.nan, 1.0, 2, 3, 4, 5, 6, 7])
    keep = torch.tensor([[0.0, 0, 0, 0, 1, 1, 1, 1]])
    table = keep_by_token(made.routed(keep, keep), made.dense(8, 1, surprisal=surprisal))
    assert table.facts["pearson with own surprisal"] == pytest.approx(math.sqrt(0.75), abs=1e-6)
    rows = {(row[0], row[1]): row for row in table.rows}
    assert rows["own surprisal", "highest fifth"][3:5] == (1.0, 1.0)
    assert rows["own surprisal", "lowest fifth"][3:5] == (0.0, 0.0)
    # The first of a row has no surprisal, so seven tokens are in fifths.
    assert sum(row[2] for row in table.rows if row[0] == "own surprisal") == 7
    assert sum(row[2] for row in table.rows if row[0] == "part of text") == 8
    opposite = keep_by_token(made.routed(1 - keep, 1 - keep), made.dense(8, 1, surprisal=surprisal))
    assert opposite.facts["spearman with own surprisal"] < -0.8


def test_the_next_tokens_surprisal_does_not_reach_over_the_end_of_a_row() -> None:
    of = made.text(list("abcdef"), rows=[3, 3])
    surprisal = torch.tensor([math.nan, 1.0, 9, math.nan, 2, 9])
    keep = torch.tensor([[0.0, 1, 0, 0, 1, 0]])
    trace, dense = made.routed(keep, keep, of=of), made.dense(6, 1, of=of, surprisal=surprisal)
    facts = keep_by_token(trace, dense).facts
    # Only "a b" and "d e" have one behind them: b and e precede the 9s and are kept.
    assert facts["pearson with next surprisal"] == pytest.approx(7.5 / 56.75**0.5)


def test_tokens_are_grouped_by_how_often_they_come_and_where_in_the_line() -> None:
    pieces = ["the"] * 3 + ["rare", "\n", "x", "y", "z", "w", "v"]
    keep = torch.tensor([[1.0] * 3 + [0.0] * 7])
    of = made.text(pieces)
    table = keep_by_token(made.routed(keep, keep, of=of), made.dense(10, 1, of=of))
    rows = {(row[0], row[1]): row for row in table.rows}
    assert rows["times in this text", "once"][2:4] == (7, 0.0)
    assert rows["times in this text", "2 to 9 times"][2:4] == (3, 1.0)
    assert ("times in this text", "100 times or more") not in rows
    assert rows["place in line", "first"][2] == 2
    assert rows["place in line", "2nd to 4th"][2] == 6
    assert rows["place in line", "5th to 16th"][2] == 2


@pytest.mark.parametrize(
    ("pieces", "kinds"),
    [
        (["Hello", " wor", "ld", "!"], ["start of a word", "start of a word", "inside a word",
                                        "punctuation"]),
        (["12", "\n", "  ", "_x", "y"], ["number", "white space", "white space",
                                         "start of a word", "inside a word"]),
        (["", "é", "", "\N{REPLACEMENT CHARACTER}"], ["other", "start of a word", "other",
                                                       "punctuation"]),
        (["(", "a", "b", "+", "c"], ["punctuation", "start of a word", "inside a word",
                                     "punctuation", "start of a word"]),
    ],
)  # fmt: skip
def test_what_part_of_the_text_a_token_is(pieces: list[str], kinds: list[str]) -> None:
    assert [KINDS[n] for n in kinds_of(pieces)] == kinds


def test_traces_of_different_texts_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="different texts"):
        keep_by_token(made.routed(ON, ON), made.dense(7, 1))


def test_health_tells_routed_modules_from_fixed_ones() -> None:
    table = routing_health(made.routed(torch.cat([ON, HALF]), torch.cat([OFF, HALF])))
    assert table.column("state") == ["always on", "always off", "routed", "routed"]
    assert table.column("entropy, bits") == pytest.approx([0, 0, 1, 1])
    assert table.column("neighbours agree") == [1, 1, 0, 0]
    assert table.column("by chance") == [1, 1, 0.5, 0.5]
    assert table.facts["always on"] == table.facts["always off"] == 0.25
    assert table.warnings == ()


def test_neighbours_in_different_rows_are_none() -> None:
    of = made.text([f"t{n}" for n in range(8)], rows=[4, 4])
    keep = torch.tensor([[1.0] * 4 + [0.0] * 4])
    assert routing_health(made.routed(keep, keep, of=of)).facts["agreement"] == 1


@pytest.mark.parametrize(
    ("attn", "mlp", "warning"),
    [
        (ON, ON, "nothing is skipped"),
        (OFF, OFF, "nothing runs"),
        (ON, OFF, "static removal"),
        (ON, HALF, None),
    ],
)
def test_a_collapse_is_warned_of_with_what_to_do(
    attn: torch.Tensor, mlp: torch.Tensor, warning: str | None
) -> None:
    attn, mlp = attn.repeat(1, 13), mlp.repeat(1, 13)
    warnings = routing_health(made.routed(attn, mlp)).warnings
    assert len(warnings) == (warning is not None)
    if warning:
        assert warning in warnings[0]


def test_a_few_tokens_are_no_collapse() -> None:
    for tokens, warnings in ((99, 0), (100, 1)):
        table = routing_health(made.routed(torch.ones(1, tokens), torch.zeros(1, tokens)))
        assert len(table.warnings) == warnings
        assert ("too few to tell" in table.findings[-1]) == (warnings == 0)


def test_the_stress_test_marks_the_knee() -> None:
    losses = {0.0: 1.9, 0.2: 2.1, 0.4: 2.2, 0.6: 2.5, 0.8: 6.0}
    traces = {
        asked: made.routed(keep, keep, nll=nll, norm=1 - asked)
        for (asked, nll), n in zip(losses.items(), (10, 8, 6, 4, 2), strict=True)
        for keep in [torch.arange(10)[None] < n]
    }
    tasks = {"piqa": {None: 0.7, 0.0: 0.72, 0.2: 0.69, 0.8: 0.5}}
    table = stress(made.dense(10, 1, nll=2.0), traces, tasks)
    assert table.column("asked") == ["dense", 0, 0.2, 0.4, 0.6, 0.8]
    assert table.column("module sparsity") == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8])
    assert table.column("excess") == pytest.approx([0, -0.1, 0.1, 0.2, 0.5, 4.0])
    assert table.column("KL to dense") == [0, *(None,) * 5]  # was not measured
    assert table.column("agreement") == [1, *(None,) * 5]
    assert table.column("norm, last layer") == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2])
    assert table.column("piqa") == [0.7, 0.72, 0.69, None, None, 0.5]
    assert table.facts["knee"] == pytest.approx(0.6)
    assert "The knee is at 60%" in table.findings[0]
    kept = "Of its dense score of 0.700, piqa keeps 102.9% at 0% and 71.4% at 80%."
    assert table.findings[1] == kept


def test_a_straight_line_and_a_falling_one_have_no_knee() -> None:
    assert knee_of([(0.0, 1.0), (0.5, 2.0), (1.0, 3.0)]) is None
    assert knee_of([(0.0, 3.0), (0.5, 2.0), (1.0, 1.0)]) is None
    assert knee_of([(0.0, 1.0), (1.0, 2.0)]) is None
    trace = made.routed(HALF, HALF, nll=3.0)
    table = stress(made.dense(8, 1), {0.5: trace})
    assert table.facts == {}
    assert "no knee" in table.findings[0]


def test_a_norm_that_halves_is_as_bad_as_one_that_doubles() -> None:
    half, double = made.routed(HALF, HALF, norm=0.5), made.routed(HALF, HALF, norm=2.0)
    table = stress(made.dense(8, 1), {0.4: half, 0.5: double})
    assert table.column("norm, worst layer") == pytest.approx([1, 2, 2])
    norms = norms_by_layer(made.dense(8, 1), {0.5: double, 0.4: half})
    assert norms.columns == ("place", "40%", "50%")
    assert norms.rows == (("into layer 1", 0.5, 2.0), ("out of the last", 0.5, 2.0))


def test_models_of_unlike_depth_stand_side_by_side() -> None:
    deep = made.routed(torch.cat([ON, ON, OFF, OFF]), torch.cat([HALF] * 4))
    shallow = made.routed(torch.cat([ON, OFF]), torch.cat([OFF, ON]))
    table = depth_profiles({"deep": deep, "shallow": shallow}, bins=4)
    assert table.columns == ("depth", "deep, attn", "deep, mlp", "shallow, attn", "shallow, mlp")
    assert table.column("deep, attn") == [1, 1, 0, 0]
    assert table.column("shallow, attn") == [1, 1, 0, 0]
    assert table.facts["attn deep with shallow"] == pytest.approx(1)
    assert math.isnan(table.facts["mlp deep with shallow"])


def test_a_layer_that_lies_in_two_bins_counts_in_both() -> None:
    trace = made.routed(torch.cat([ON, OFF, ON]), torch.cat([ON, ON, ON]))
    assert depth_profiles({"one": trace}, bins=2).column("one, attn") == pytest.approx(
        [2 / 3, 2 / 3]
    )


def test_facts_of_two_checkpoints_stand_in_columns() -> None:
    first, second = (
        [keep_by_module(made.routed(HALF, each)), routing_health(made.routed(HALF, each))]
        for each in (ON, HALF)
    )
    table = side_by_side({"a": first, "b": second[:1]})
    assert table.columns == ("fact", "a", "b")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["modules: ratio"] == (0.5, 1.0)
    assert rows["health: always on"] == (0.5, None)


def test_a_table_reads_as_markdown_and_as_strict_json() -> None:
    table = Table("t", "Why?", ("a|b", "x"), (("p|q\n", math.nan), ("r", 0.123456)), ("So.",),
                  {"f": math.inf}, ("Mind.",))  # fmt: skip
    lines = table.to_markdown().splitlines()
    assert lines[0] == "**Why?**"
    assert "| p\\|q⏎ |  |" in lines
    assert "| r | 0.1235 |" in lines
    assert lines[-1] == "Warning: Mind."
    plain = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert plain["rows"] == [["p|q\n", None], ["r", 0.123456]]
    assert plain["facts"] == {"f": None}
    with pytest.raises(ValueError, match="not in"):
        table.column("y")
