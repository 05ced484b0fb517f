"""A cost is the squared effect of skipping on the loss, in the Fisher metric of the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cases import base, every_layout, routed
from lively import build_lively
from reference import decoder_layers, hooked_logits
from skipgpt.errors import ConfigError, TrainingError
from skipgpt.fitting import costs
from skipgpt.fitting.costs import draw_labels, measure_costs
from skipgpt.fitting.gated_passes import Gates, gated_passes
from skipgpt.model.surgery import routers, stand_ins
from skipgpt.routing.decision import Site

TEXT = torch.randint(1, 250, (3, 7), generator=torch.Generator().manual_seed(3))


def _fixed_labels(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    labels = torch.randint(0, 250, TEXT.shape, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(costs, "draw_labels", lambda logits, _: labels.flatten()[: len(logits)])
    return labels


def _frozen(family: str, **router: Any) -> nn.Module:
    model = routed(family, **router)
    return model.requires_grad_(False)


@every_layout
def test_costs_are_squared_gradients_of_gates_in_the_authors_forward(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = _fixed_labels(monkeypatch)
    measured = measure_costs(_frozen(family), TEXT, batch_size=3)
    gates: dict[tuple[int, str], Tensor] = {}

    def gate(layer: int, module: str, entering: Tensor) -> Tensor:
        gates[layer, module] = entering.new_ones(entering.shape[:2]).requires_grad_()
        return gates[layer, module]

    logits = hooked_logits(base(family).requires_grad_(False), {"input_ids": TEXT}, gate)
    loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    found = torch.autograd.grad(loss, list(gates.values()))
    # The sites of a model with experts differ in which experts are near a tie by no more than this.
    for (layer, module), gradient in zip(gates, found, strict=True):
        expected = gradient.flatten().square()
        actual = measured[Site(layer, module)].value  # type: ignore[arg-type]
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-4 * expected.max().item())


def test_with_stand_ins_a_cost_is_what_the_module_adds_beyond_its_stand_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = _fixed_labels(monkeypatch)
    model = _frozen("llama", stand_in=3)
    measured = measure_costs(model, TEXT, batch_size=3)
    plain = base("llama").requires_grad_(False)
    seen: dict[tuple[int, str], dict[str, Tensor]] = {}
    for index, layer in enumerate(decoder_layers(plain)):
        for module, part, before in (
            ("attn", layer.self_attn, layer.input_layernorm),
            ("mlp", layer.mlp, layer.post_attention_layernorm),
        ):
            at = seen.setdefault((index, module), {})

            def reads(_: Any, args: tuple[Tensor, ...], at: dict[str, Tensor] = at) -> None:
                at["read"] = args[0]

            def adds(_: Any, __: Any, output: Any, at: dict[str, Tensor] = at) -> Any:
                update = output[0] if isinstance(output, tuple) else output
                at["update"] = update.requires_grad_() if update.is_leaf else update
                at["update"].retain_grad()
                return (at["update"], *output[1:]) if isinstance(output, tuple) else at["update"]

            before.register_forward_pre_hook(reads)
            part.register_forward_hook(adds)
    logits = plain(input_ids=TEXT).logits
    cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    for (index, module), at in seen.items():
        stand_in = stand_ins(model)[Site(index, module)]  # type: ignore[arg-type]
        read = at["read"] * (at["read"].pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        instead = read @ stand_in.down.weight.T @ stand_in.up.weight.T + stand_in.up.bias
        gradient = at["update"].grad
        assert gradient is not None
        expected = (gradient * (at["update"] - instead)).sum(-1).square().flatten()
        actual = measured[Site(index, module)].value  # type: ignore[arg-type]
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_over_draws_the_mean_cost_is_the_fisher_information_of_skipping() -> None:
    model = build_lively("llama")
    head = nn.Linear(32, 5, bias=False)  # a vocabulary that can be enumerated
    model.lm_head = head
    model.requires_grad_(False)
    row, sites = TEXT[:1, :4], [(0, "mlp"), (2, "attn")]
    ones = {site: torch.ones(1, 4) for site in sites}

    def log_likely(*given: Tensor) -> Tensor:
        by_site = dict(zip(sites, given, strict=True))
        one = torch.ones(1, 4)
        logits = hooked_logits(
            model, {"input_ids": row}, lambda n, module, _: by_site.get((n, module), one)
        )
        return logits.log_softmax(-1)[0]

    at = log_likely(*ones.values())
    slopes = torch.autograd.functional.jacobian(log_likely, tuple(ones.values()))
    likely = at.exp()
    # Labels of positions are drawn alone, and every slope has mean zero: squares add up.
    exact = {
        site: (likely[..., None] * slope[:, :, 0].square()).sum((0, 1))
        for site, slope in zip(sites, slopes, strict=True)
    }
    from skipgpt.model.surgery import add_routers

    add_routers(model).requires_grad_(False)
    measured = measure_costs(model, row.expand(4000, -1), batch_size=500)
    for (layer, module), expected in exact.items():
        mean = measured[Site(layer, module)].value.view(4000, 4).mean(0)  # type: ignore[arg-type]
        # A mean of 4,000 squares of about normal numbers is off by 2.2 %; four of those.
        torch.testing.assert_close(mean, expected, rtol=0.1, atol=1e-7)


def test_labels_are_drawn_from_the_softmax() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), -math.inf]]).expand(8000, -1)
    drawn = draw_labels(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=3) / 8000
    # Three standard deviations of a share of 8,000 draws are 0.015.
    assert shares.tolist() == pytest.approx([0.25, 0.75, 0.0], abs=0.015)


@pytest.mark.parametrize("reads", ["layer_input", "module_input"])
def test_inputs_are_those_of_the_routers_and_the_model_is_as_before(reads: str) -> None:
    model = _frozen("llama", input=reads, normalize=True)
    before = dict(routers(model))
    with torch.no_grad():
        logits = model(input_ids=TEXT).logits
    measured = measure_costs(model, TEXT, layers=[1], batch_size=2)
    assert list(measured) == [Site(1, "attn"), Site(1, "mlp")]
    attn, mlp = measured.values()
    assert (attn.read is mlp.read) == (reads == "layer_input")
    assert attn.read.shape == (21, 32)
    # RMS-normalised, in float16.
    torch.testing.assert_close(
        attn.read.float().square().mean(-1), torch.ones(21), rtol=0, atol=2e-3
    )
    assert routers(model) == before
    with torch.no_grad():
        assert torch.equal(model(input_ids=TEXT).logits, logits)


def test_a_router_of_a_layer_has_the_cost_of_both_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = _fixed_labels(monkeypatch)
    measured = measure_costs(_frozen("llama", decides="layer"), TEXT, batch_size=3)
    plain, gates = base("llama").requires_grad_(False), {}

    def gate(layer: int, module: str, entering: Tensor) -> Tensor:
        if layer not in gates:
            gates[layer] = torch.ones(TEXT.shape).requires_grad_()
        return gates[layer]

    logits = hooked_logits(plain, {"input_ids": TEXT}, gate)
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    for layer, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
        actual = measured[Site(layer, "attn")].value
        torch.testing.assert_close(actual, gradient.flatten().square(), rtol=1e-3, atol=1e-5)


def test_a_gradient_that_is_no_number_names_its_module() -> None:
    model = _frozen("llama")
    with torch.no_grad():
        layer = decoder_layers(model)[1]
        layer.mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"layer \d, \w+, that are NaN.*the weights again"):
        measure_costs(model, TEXT)


@pytest.mark.parametrize(
    ("dtype", "todo"),
    [(torch.float32, "get the weights again"), (torch.float16, "run with --dtype float32")],
)
def test_a_cost_that_is_infinite_for_all_tokens_names_its_module(
    dtype: torch.dtype, todo: str
) -> None:
    model = _frozen("llama").to(dtype)

    def broken(_: Tensor, __: Tensor, gates: Gates) -> list[Tensor]:
        found = [torch.ones(TEXT.numel()) for _ in gates]
        found[3].fill_(math.inf)
        return found

    with pytest.raises(TrainingError, match=rf"21 of 21 gradients of layer 1, mlp.*{todo}"):
        gated_passes(model, TEXT, broken)


def test_decisions_of_whole_sequences_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"router.decides = \"sequence\".*--stages router"):
        measure_costs(_frozen("llama", decides="sequence"), TEXT)
