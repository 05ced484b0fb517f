"""Which tokens get how much compute."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from skipgpt.analysis.statistics import pearson, spearman
from skipgpt.analysis.table import Cell, Table
from skipgpt.analysis.trace import DenseTrace, TextTrace
from skipgpt.errors import ConfigError

COUNTS = ((1, "once"), (9, "2 to 9 times"), (99, "10 to 99 times"))
PLACES = ((0, "first"), (3, "2nd to 4th"), (15, "5th to 16th"))
KINDS = ("start of a word", "inside a word", "number", "punctuation", "white space", "other")
FIFTHS = ("lowest fifth", "second", "third", "fourth", "highest fifth")


def keep_by_token(trace: TextTrace, dense: DenseTrace) -> Table:
    """Tabulate compute by token frequency, part of word, place in the line and surprisal.

    The critics' question: does a router see difficulty, or only token identity? Surprisal is the
    dense model's, given for the token itself and for the next one, which it is read to predict.

    Raises:
        ConfigError: the traces are not of the same rows.
    """
    one, other = trace.text, dense.text
    if not (torch.equal(one.ids, other.ids) and torch.equal(one.row, other.row)):
        raise ConfigError(
            "comparing compute with surprisal",
            got="traces of different texts",
            expected="a routed and a dense trace of the same rows",
        )
    surprisal, following = dense.surprisal, _following(dense)
    attn, mlp = (trace.keep[:, kind].float().mean(0) for kind in (0, 1))
    rows: list[tuple[Cell, ...]] = []
    for name, labels, of in (
        ("times in this text", (*(n for _, n in COUNTS), "100 times or more"), _frequency(trace)),
        ("part of text", KINDS, torch.tensor(kinds_of(trace.text.pieces))),
        ("place in line", (*(n for _, n in PLACES), "17th or later"), _places(trace)),
        ("own surprisal", FIFTHS, _fifths(surprisal)),
        ("surprisal of the next", FIFTHS, _fifths(following)),
    ):
        for n, label in enumerate(labels):
            chosen = of == n
            if count := int(chosen.sum()):
                shares = (attn[chosen].mean().item(), mlp[chosen].mean().item())
                told = surprisal[chosen].nanmean().item()
                rows.append((name, label, count, *shares, told))
    compute = trace.compute
    facts = {
        f"{kind} with {what}": correlate(compute, values)
        for what, values in (("own surprisal", surprisal), ("next surprisal", following))
        for kind, correlate in (("pearson", pearson), ("spearman", spearman))
    }
    return Table(
        "tokens",
        "Which tokens get compute, and is it the surprising ones?",
        ("grouped by", "group", "tokens", "attn keep rate", "mlp keep rate", "mean surprisal"),
        tuple(rows),
        (_finding(facts),),
        facts,
    )


def kinds_of(pieces: Sequence[str]) -> list[int]:
    """Return the kind of each token, as an index into `KINDS`.

    Example:
        >>> [KINDS[n] for n in kinds_of(["read", "er", "(", "12"])]
        ['start of a word', 'inside a word', 'punctuation', 'number']
    """
    kinds, before = [], " "
    for piece in pieces:
        bare = piece.strip()
        if not piece:
            kind = "other"  # part of a character
        elif not bare:
            kind = "white space"
        elif bare[0].isdigit():
            kind = "number"
        elif bare[0].isalpha() or bare[0] == "_":
            inside = piece == piece.lstrip() and (before.isalnum() or before == "_")
            kind = "inside a word" if inside else "start of a word"
        elif unicodedata.category(bare[0])[0] in "PS":
            kind = "punctuation"
        else:
            kind = "other"
        kinds.append(KINDS.index(kind))
        before = piece[-1:] or before
    return kinds


def _finding(facts: dict[str, float]) -> str:
    own, following = (
        f"{facts[f'pearson with {what} surprisal']:.2f} "
        f"(ranks: {facts[f'spearman with {what} surprisal']:.2f})"
        for what in ("own", "next")
    )
    return (
        f"Compute and a token's own surprisal correlate by {own}, compute and that of the next "
        f"token by {following}."
    )


def _frequency(trace: TextTrace) -> Tensor:
    """[N] index into `COUNTS`, or beyond, by how often the token is in the text."""
    _, place, counts = torch.unique(trace.text.ids, return_inverse=True, return_counts=True)
    return torch.bucketize(counts[place], torch.tensor([most for most, _ in COUNTS]))


def _places(trace: TextTrace) -> Tensor:
    """[N] index into `PLACES`, or beyond, by how many tokens of the line precede it."""
    places, place, row = [], 0, -1
    for piece, its_row in zip(trace.text.pieces, trace.text.row.tolist(), strict=True):
        place = 0 if its_row != row else place
        row = its_row
        places.append(place)
        place = 0 if "\n" in piece else place + 1
    return torch.bucketize(torch.tensor(places), torch.tensor([most for most, _ in PLACES]))


def _following(dense: DenseTrace) -> Tensor:
    """[N] surprisal of the next token, nan at the last of a row."""
    nothing = dense.surprisal.new_full((1,), torch.nan)
    return torch.cat([dense.surprisal[1:], nothing])  # a row's first is nan already


def _fifths(values: Tensor) -> Tensor:
    """[N] quintile, 0 to 4; -1 where not finite."""
    known = values[values.isfinite()]
    if not len(known):
        return torch.full(values.shape, -1)
    bounds = known.double().quantile(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))
    return torch.where(values.isfinite(), torch.bucketize(values.double(), bounds), -1)
