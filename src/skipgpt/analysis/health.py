"""Routing health: whether decisions depend on the token."""

from __future__ import annotations

from skipgpt.analysis.statistics import entropy_bits
from skipgpt.analysis.table import Table
from skipgpt.analysis.trace import TextTrace

ALWAYS = 0.99
"""A module with at least this share of equal decisions is always on or off, not routed."""
COLLAPSED = 0.9
"""Where this share of modules is always on or always off, routing has become static removal."""

ENOUGH = 100
"""Tokens that a warning needs: with fewer, 1 % cannot be told from none."""


def routing_health(trace: TextTrace) -> Table:
    """Tabulate each module's decision entropy, constant modules, and agreement of neighbours.

    Entropy is that of the keep rate, 1 bit where half of the tokens run the module. Agreement is
    the share of neighbouring tokens with equal decisions; by chance it would be p² + (1 - p)².
    """
    keep = trace.keep.flatten(0, 1)
    rates = keep.double().mean(-1)
    entropy = entropy_bits(rates)
    neighbours = trace.text.row[1:] == trace.text.row[:-1]
    alike = (keep[:, 1:] == keep[:, :-1])[:, neighbours].double().mean(-1)
    chance = rates.square() + (1 - rates).square()
    tokens = keep.shape[1]
    few = tokens < ENOUGH
    each = (column.tolist() for column in (rates, entropy, alike, chance))
    rows = tuple(
        (n // 2 + 1, ("attn", "mlp")[n % 2], *numbers, _state(numbers[0]))
        for n, numbers in enumerate(zip(*each, strict=True))
    )
    on, off = (
        sum(row[-1] == state for row in rows) / len(rows) for state in ("always on", "always off")
    )
    facts = {
        "entropy": entropy.mean().item(),
        "always on": on,
        "always off": off,
        "agreement": alike.mean().item(),
        "agreement by chance": chance.mean().item(),
    }
    return Table(
        "health",
        "Does routing depend on the token, or has it collapsed?",
        ("layer", "module", "keep rate", "entropy, bits", "neighbours agree", "by chance", "state"),
        rows,
        (
            f"{on:.0%} of modules are always on and {off:.0%} always off (for {ALWAYS:.0%} of "
            f"tokens or more); the mean entropy is {facts['entropy']:.2f} bits of at most 1.",
            f"Neighbouring tokens decide alike in {facts['agreement']:.1%} of cases, by chance it "
            f"would be {facts['agreement by chance']:.1%}.",
            *([f"{tokens} tokens are too few to tell a collapse; {ENOUGH} would do."] * few),
        ),
        facts,
        () if few else _warnings(on, off),
        part="health",
    )


def _state(rate: float) -> str:
    return "always on" if rate >= ALWAYS else "always off" if rate <= 1 - ALWAYS else "routed"


def _warnings(on: float, off: float) -> tuple[str, ...]:
    fixed = f"a module counts as fixed where at least {ALWAYS:.0%} of tokens decide alike"
    if on == 1:
        return ("Every module is always on: nothing is skipped. Raise --sparsity.",)
    if off == 1:
        return ("Every module is always off: nothing runs. Lower --sparsity.",)
    if on + off >= COLLAPSED:
        return (
            f"{on + off:.0%} of modules are always on or always off ({fixed}; more than "
            f"{COLLAPSED:.0%} is a collapse): routing is static removal. Fit on "
            "more text (fit_stage.tokens), train the routers longer (stage router), or use "
            "`skipgpt export --static`, which is as good here and faster.",
        )
    return ()
