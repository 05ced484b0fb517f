"""Choose which modules to remove, and how the remaining ones form layers again.

A transformers config can leave out whole layers only. But a skipped module leaves nothing but the
residual stream, so a model is a sequence of modules, A0 M0 A1 M1 …, and layers only group
neighbours. The remaining modules can be grouped into layers anew:

    A0 M0 | A1 -- | -- M2 | A3 M3      M1 and A2 removed
    A0 M0 | A1 M2 | A3 M3              one layer fewer, the same function

Each layer is an attention followed by an MLP. Where two of a kind would become neighbours, a
removable module has to stay.
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
    """Return the layers with the fewest parameters that hold every non-removable module.

    A dynamic programme over the modules in the order the data moves. Its state is the kind of the
    last kept module (none, an attention, an MLP), with the cheapest choice so far for each; the
    next module is removed, if it may be, or kept, if it fits behind the last. This compares all
    choices in one pass, so the result is optimal. Keeping everything is a choice, so there always
    is one; at least one layer stays.

    Ties in parameters are broken in favour of modules that more tokens keep.

    Args:
        sites: every module, in the order the data moves.
        removable: modules that may be removed.
        parameters: parameters of each module.
        rates: share of tokens that keep each.
        whole_layers: keep or remove the two modules of a layer together.

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
