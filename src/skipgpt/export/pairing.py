"""Choose which modules to remove, and how the remaining ones form layers again.

A transformers config can leave out whole layers only. But a skipped module leaves nothing but the
residual stream, so a model is a sequence of modules, A0 M0 A1 M1 …, and layers only group
neighbours. The remaining modules can be grouped into layers anew:

    A0 M0 | A1 -- | -- M2 | A3 M3      M1 and A2 removed
    A0 M0 | A1 M2 | A3 M3              one layer fewer, the same function

Each layer is an attention followed by an MLP, so modules go two by two, neighbours each time. What
goes together is judged together: by the share of the two modules' parameters that a token runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from skipgpt.routing.decision import Site

Pair = tuple[int, int]
"""The layers that the attention and the MLP of a new layer come from."""

Neighbours = tuple[Site, Site]
Choice = tuple[tuple[int, float], tuple[Site, ...]]
"""Parameters and negative keep rates of what is kept, and what that is."""


def pair_rates(
    sites: Sequence[Site],
    parameters: Mapping[Site, int],
    rates: Mapping[Site, float],
    *,
    whole_layers: bool = False,
) -> dict[Neighbours, float]:
    """Return the share of its parameters that a token runs, for each pair that can go together.

    Args:
        sites: every module, in the order the data moves.
        parameters: parameters of each module.
        rates: share of tokens that keep each.
        whole_layers: only the two modules of a layer can go together.

    Example:
        >>> a0, m0, a1, m1 = (Site(n, module) for n in range(2) for module in ("attn", "mlp"))
        >>> rates = {a0: 1.0, m0: 0.0, a1: 1.0, m1: 1.0}
        >>> found = pair_rates([a0, m0, a1, m1], {a0: 1, m0: 3, a1: 1, m1: 3}, rates)
        >>> found[a0, m0], found[m0, a1], found[a1, m1]
        (0.25, 0.25, 1.0)
    """
    return {
        (a, b): (parameters[a] * rates[a] + parameters[b] * rates[b])
        / (parameters[a] + parameters[b])
        for a, b in pairwise(sites)
        if a.layer == b.layer or not whole_layers
    }


def pair_up(
    sites: Sequence[Site],
    removable: Collection[Neighbours],
    parameters: Mapping[Site, int],
    rates: Mapping[Site, float],
) -> list[Pair]:
    """Return the layers with the fewest parameters from which only removable pairs are missing.

    A dynamic programme over the modules in the order the data moves: each is kept, or goes with
    the one before it. It compares all choices in one pass, so the result is optimal. At least one
    layer stays; ties in parameters are broken in favour of modules that more tokens keep.
    `removable` are pairs of neighbours that may be removed; the other arguments are those of
    `pair_rates`. Returns, for each new layer, the layers that its attention and its MLP come from.

    Example:
        >>> sites = [Site(layer, module) for layer in range(3) for module in ("attn", "mlp")]
        >>> ones = dict.fromkeys(sites, 1)
        >>> pair_up(sites, [(Site(0, "mlp"), Site(1, "attn"))], ones, ones)
        [(0, 1), (2, 2)]
        >>> pair_up(sites, [], ones, ones)
        [(0, 0), (1, 1), (2, 2)]
    """
    # After each module, the cheapest choice that keeps nothing and the one that keeps something.
    best: list[list[Choice]] = [[((0, 0.0), ())]]
    for at, site in enumerate(sites):
        choices: list[Choice] = [
            ((size + parameters[site], rate - rates[site]), (*kept, site))
            for (size, rate), kept in best[-1]
        ]
        if at and (sites[at - 1], site) in removable:
            choices += best[-2]
        groups = [[each for each in choices if bool(each[1]) is some] for some in (False, True)]
        best.append([min(group) for group in groups if group])
    _, kept = best[-1][-1]
    layers = [site.layer for site in kept]
    return list(zip(layers[::2], layers[1::2], strict=True))
