"""Which modules can go for good, and how those that stay form layers again.

A transformers config can leave out whole layers only. But a skipped module leaves nothing but the
residual stream, so a model is a sequence of modules, A0 M0 A1 M1 …, and which layer a module is
in says no more than which of them follow each other. What stays can be cut into layers anew:

    A0 M0 | A1 -- | -- M2 | A3 M3      M1 and A2 removed
    A0 M0 | A1 M2 | A3 M3              one layer less, the same function

It takes an attention followed by an MLP each time. Where two of a kind would meet, a removable
module between them, or one of the two, has to stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from skipgpt.routing.decision import Site

Pair = tuple[int, int]
"""The layers that the attention and the MLP of a new layer come from."""

Weight = tuple[int, float]


def pair_up(
    sites: Sequence[Site],
    removable: Collection[Site],
    parameters: Mapping[Site, int],
    rates: Mapping[Site, float],
    *,
    whole_layers: bool = False,
) -> list[Pair]:
    """The layers with the fewest parameters that hold every module that is not removable.

    A dynamic programme over the modules in the order the data moves. All that the rest of a
    choice depends on is the kind of the last module that stays (none, an attention, an MLP), so
    for each of the three the cheapest choice so far is carried along; the next module goes, if
    it may, or stays, if it fits behind the last. Every choice is among those compared, so the
    result is the least there is, in one pass. Keeping everything is a choice, so there always is
    one; at least one layer stays.

    Among choices of equally many parameters, the modules that more tokens keep stay.

    Args:
        sites: every module, in the order the data moves.
        removable: those that may go.
        parameters: of each.
        rates: share of tokens that keep each.
        whole_layers: modules stay with the one that they share a layer with, which has to go or
            stay as well.

    Returns:
        For each new layer the layers that its attention and its MLP come from.

    Example:
        >>> sites = [Site(layer, module) for layer in range(3) for module in ("attn", "mlp")]
        >>> ones = dict.fromkeys(sites, 1)
        >>> pair_up(sites, [Site(0, "mlp"), Site(1, "attn")], ones, ones)
        [(0, 1), (2, 2)]
        >>> pair_up(sites, [Site(1, "attn")], ones, ones)  # would leave M0 M1 side by side
        [(0, 0), (1, 1), (2, 2)]
    """
    best: dict[str, tuple[Weight, tuple[Site, ...]]] = {"": ((0, 0.0), ())}
    for site in sites:
        choices: dict[str, list[tuple[Weight, tuple[Site, ...]]]] = {}
        for last, (weight, kept) in best.items():
            layer_open = last == "attn"
            if site in removable and not (whole_layers and layer_open and site.module == "mlp"):
                choices.setdefault(last, []).append((weight, kept))
            if layer_open == (site.module == "mlp"):
                grown = weight[0] + parameters[site], weight[1] - rates[site]
                choices.setdefault(site.module, []).append((grown, (*kept, site)))
        best = {last: min(each) for last, each in choices.items()}
    _, kept = best["mlp"]
    layers = [site.layer for site in kept]
    return list(zip(layers[::2], layers[1::2], strict=True))


def sites_in(pairs: Sequence[Pair]) -> list[Site]:
    """The modules that the new layers hold, in the order the data moves."""
    return [site for attn, mlp in pairs for site in (Site(attn, "attn"), Site(mlp, "mlp"))]
