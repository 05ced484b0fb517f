"""What a budget counts equals what the sparsities of a run say."""

from __future__ import annotations

import pytest

from skipgpt.config import RouterConfig
from skipgpt.cost import savings, sparsities
from skipgpt.model.surgery import add_routers, routers
from zoo import build


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "phi3", "deepseek_v3"])
@pytest.mark.parametrize("rank", [0, 3])
def test_flops_saved_equal_the_flop_sparsity_of_any_keep_ratios(family: str, rank: int) -> None:
    model = add_routers(build(family), RouterConfig(stand_in=rank))
    keep = {site: (n % 5) / 4 for n, site in enumerate(routers(model))}
    saved = savings(model, "flops", context=9.5).share(keep)
    assert saved == pytest.approx(sparsities(model, keep, 9.5)["flops"], abs=1e-12)


def test_modules_count_the_same() -> None:
    model = add_routers(build("llama"))
    keep = dict.fromkeys(routers(model), 0.75)
    assert savings(model, "modules", context=9.5).share(keep) == pytest.approx(0.25)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "deepseek_v3"])
@pytest.mark.parametrize("rank", [0, 3])
def test_what_a_removal_saves_equals_the_sparsity_without_keys_and_routers(
    family: str, rank: int
) -> None:
    model = add_routers(build(family), RouterConfig(stand_in=rank))
    gone = {site for n, site in enumerate(routers(model)) if n % 3}
    keep = {site: float(site not in gone) for site in routers(model)}
    expected = sparsities(model, keep, 9.5, gone=gone, routed=False)
    saved = savings(model, "flops", context=9.5, removed=True)
    assert saved.share(keep) == pytest.approx(expected["flops"], abs=1e-12)
    assert savings(model, "modules", 9.5, removed=True).share(keep) == pytest.approx(
        expected["module"]
    )
