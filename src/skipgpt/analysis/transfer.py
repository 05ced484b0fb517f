"""Whether different checkpoints learned to skip the same parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from skipgpt.analysis.statistics import pearson
from skipgpt.analysis.table import Cell, Table
from skipgpt.analysis.trace import TextTrace


def depth_profiles(traces: Mapping[str, TextTrace], bins: int = 10) -> Table:
    """Tabulate keep rates over relative depth, so that models of different depth compare.

    The paper compares LLaMA2 and LLaMA3.1; open: does what is skipped transfer to other models?
    Traces, two or more, are by the name of their checkpoint; their texts may differ.
    """
    profiles = {
        (name, kind): _over_depth(trace.keep[:, n].float().mean(-1), bins)
        for name, trace in traces.items()
        for n, kind in enumerate(("attn", "mlp"))
    }
    rows: list[tuple[Cell, ...]] = [
        (f"{n / bins:.0%} to {(n + 1) / bins:.0%}", *(each[n].item() for each in profiles.values()))
        for n in range(bins)
    ]
    facts, findings = {}, []
    first, *others = traces
    for other in others:
        for kind, said in (("attn", "attention"), ("mlp", "the MLP")):
            alike = pearson(profiles[first, kind], profiles[other, kind])
            facts[f"{kind} {first} with {other}"] = alike
            findings.append(
                f"Over depth, {said} of {first} and of {other} correlate by {alike:.2f}."
            )
    columns = tuple(f"{name}, {kind}" for name, kind in profiles)
    question = "Do checkpoints of different models skip at the same depth?"
    return Table("depth", question, ("depth", *columns), tuple(rows), tuple(findings), facts)


def side_by_side(tables: Mapping[str, Sequence[Table]]) -> Table:
    """Tabulate the facts of the same analyses, one column per checkpoint."""
    facts = {
        name: {f"{t.name}: {fact}": value for t in each for fact, value in t.facts.items()}
        for name, each in tables.items()
    }
    every = dict.fromkeys(fact for each in facts.values() for fact in each)
    rows = tuple((fact, *(each.get(fact) for each in facts.values())) for fact in every)
    return Table("transfer", "What differs between the checkpoints?", ("fact", *tables), rows)


def _over_depth(rates: Tensor, bins: int) -> Tensor:
    """Average rates [L] over equal parts of the depth, [bins]; a layer may lie in several."""
    fine = rates.double().repeat_interleave(bins)  # `bins` parts per layer, L per bin
    return fine.view(bins, len(rates)).mean(-1)
