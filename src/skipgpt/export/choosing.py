"""Which modules a static export removes: what tokens hardly run, as each form allows."""

from __future__ import annotations

from typing import Literal

from torch import nn

from skipgpt.errors import ConfigError
from skipgpt.export.decilm import Layer, choose_layers
from skipgpt.export.pairing import pair_rates, pair_up
from skipgpt.export.rebuild import module_parameters, moves_whole_layers
from skipgpt.routing.decision import Site

Form = Literal["transformers", "vllm"]


def choose(
    model: nn.Module, rates: dict[Site, float], keep_rate: float, form: Form, doing: str
) -> tuple[list[Layer], tuple[Site, ...], tuple[Site, ...]]:
    """Choose new layers, sites to remove, and rare ones that stay.

    Raises ConfigError if none can go.
    """
    rare = [site for site, rate in rates.items() if rate < keep_rate]
    lowest = {str(site): rate for site, rate in rates.items()}
    expected = f"a module that fewer than {keep_rate:.1%} of tokens keep"
    todo = "raise --keep-rate (keep_rate=) or --sparsity (sparsity=)"
    layers: list[Layer]
    if form == "vllm":
        layers = choose_layers(list(rates), rare, rates)
    else:
        sizes, whole = module_parameters(model), moves_whole_layers(model)
        pairs = pair_rates(list(rates), sizes, rates, whole_layers=whole)
        removable = [pair for pair, rate in pairs.items() if rate < keep_rate]
        layers = [*pair_up(list(rates), removable, sizes, rates)]
        lowest = {f"{a} with {b}": rate for (a, b), rate in pairs.items()}
        expected = (
            "an attention and an MLP side by side of whose parameters tokens run less than "
            f"{keep_rate:.1%}"
            + (", which share a layer in this model" if whole else "")
            + "; removing one alone would leave a layer without attention or MLP"
        )
        todo += ", or use --format vllm, where either may go alone" if rare else ""
    attns, mlps = (set(each) for each in zip(*layers, strict=True))
    staying = {site for site in rates if site.layer in (attns if site.module == "attn" else mlps)}
    removed = tuple(site for site in rates if site not in staying)
    if removed:
        return layers, removed, tuple(site for site in rare if site in staying)
    if form == "vllm" and rare:
        expected = "one that is not the first attention, which this form keeps"
    elif form != "vllm" and removable:
        expected = "more than one layer, since one has to stay"
    found = ", ".join(
        f"{name} {lowest[name]:.1%}" for name in sorted(lowest, key=lowest.__getitem__)[:4]
    )
    raise ConfigError(doing, got=f"as the lowest keep rates {found}", expected=expected, todo=todo)
