"""What a budget counts, against the work of a forward and against plain sums."""

from __future__ import annotations

import pytest

from skipgpt.config import RouterConfig
from skipgpt.cost import Forward, savings, sparsities, work
from skipgpt.model.surgery import add_routers, routers
from zoo import build

WHOLE = Forward(tokens=18, logits=18)
"""A row whose tokens attend to 9.5 tokens on average."""


@pytest.mark.parametrize("kv", ["dense", "skip"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "phi3", "deepseek_v3"])
@pytest.mark.parametrize("rank", [0, 3])
def test_flops_saved_equal_those_that_a_forward_has_less_at_any_keep_ratios(
    family: str, rank: int, kv: str
) -> None:
    model = add_routers(build(family), RouterConfig(stand_in=rank, kv=kv))
    keep = {site: (n % 5) / 4 for n, site in enumerate(routers(model))}
    expected = 1 - work(model, WHOLE, keep).flops / work(model, WHOLE).flops
    assert savings(model, "flops", context=9.5).share(keep) == pytest.approx(expected, abs=1e-12)
    assert sparsities(model, keep, 9.5)["flops"] == pytest.approx(expected, abs=1e-12)


def test_modules_count_the_same() -> None:
    model = add_routers(build("llama"))
    keep = dict.fromkeys(routers(model), 0.75)
    assert savings(model, "modules", context=9.5).share(keep) == pytest.approx(0.25)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_removal_saves_all_parameters_of_a_module_and_runs_no_router(
    family: str, rank: int
) -> None:
    base = build(family)
    layers = base.model.layers if family == "llama" else base.transformer.h
    attn, mlp = ("self_attn", "mlp") if family == "llama" else ("attn", "mlp")
    sizes = [
        sum(p.numel() for p in getattr(layer, name).parameters())
        for layer in layers
        for name in (attn, mlp)
    ]
    head, width = base.get_output_embeddings().weight.numel(), 32
    core = 4 * width * 9.5  # scores and weighted values
    model = add_routers(base, RouterConfig(stand_in=rank))
    gone = {site for n, site in enumerate(routers(model)) if n % 3}
    keep = {site: float(site not in gone) for site in routers(model)}
    cut = [size for size, site in zip(sizes, routers(model), strict=True) if site in gone]
    standing_in = len(gone) * (2 * width * rank + width if rank else 0)
    dense, saved = head + sum(sizes), sum(cut) - standing_in
    cores = sum(site.module == "attn" for site in gone)
    found = sparsities(model, keep, 9.5, removed=True)
    assert found["params"] == pytest.approx(saved / dense, abs=1e-12)
    expected = (2 * saved + cores * core) / (2 * dense + len(layers) * core)
    assert found["flops"] == pytest.approx(expected, abs=1e-12)
    assert savings(model, "flops", 9.5, removed=True).share(keep) == pytest.approx(
        expected, abs=1e-12
    )
    assert found["module"] == pytest.approx(len(gone) / len(keep))
