import torch
from torch import Tensor, nn

from cases import (
    BATCHES,
    CLOSE,
    CLOSE_GRADIENT,
    LEFT_PADDED,
    ONE_ROW,
    SITES,
    base,
    conformance,
    every_layout,
    routed,
)
from reference import hooked_logits, keeps
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import ModuleDecision, Site

Nudges = dict[Site, Tensor]


class Nudged:
    """Decides as routers do at inference; the gate is a leaf's value off the decision's 0 or 1."""

    def __init__(self, nudges: Nudges) -> None:
        self.nudges = nudges

    def __call__(self, margin: Tensor, site: Site) -> ModuleDecision:
        keep = margin > 0
        return ModuleDecision(keep, keep + self.nudges[site], margin)


def _nudges(size: float) -> Nudges:
    made = torch.Generator().manual_seed(5)
    shape = LEFT_PADDED.ids.shape
    return {site: (size * torch.randn(shape, generator=made)).requires_grad_() for site in SITES}


def _authors_logits(model: nn.Module, plain: nn.Module, nudges: Nudges) -> Tensor:
    at = routers(model)

    def gate(layer: int, module: str, state: Tensor) -> Tensor:
        return keeps(at[layer, module], state) + nudges[layer, module]

    return hooked_logits(plain, LEFT_PADDED.given, gate)[LEFT_PADDED.real]


@conformance
def test_gated_equals_the_authors_forward_in_values_and_gate_gradients(family: str) -> None:
    """With gates anywhere, at which every output's size matters."""
    _compare(family, size=0.3)


@every_layout
def test_gated_equals_it_with_gates_of_0_and_1_as_routers_decide(family: str) -> None:
    _compare(family, size=0.0)


def _compare(family: str, size: float) -> None:
    model, nudges = routed(family), _nudges(size)
    expected = _authors_logits(model, base(family), nudges)
    with use_rule(model, Nudged(nudges)), execution(model, "gated"):
        actual = model(**LEFT_PADDED.given).logits[LEFT_PADDED.real]

    torch.testing.assert_close(actual, expected, **CLOSE)
    # A mean of squares: not symmetric in the tokens, so no gradient cancels by chance.
    wanted = torch.autograd.grad(expected.square().mean(), list(nudges.values()))
    grads = torch.autograd.grad(actual.square().mean(), list(nudges.values()))
    for site, grad, other in zip(SITES, grads, wanted, strict=True):
        torch.testing.assert_close(
            grad, other, **CLOSE_GRADIENT, msg=lambda text, site=site: f"{site}: {text}"
        )
        assert other[LEFT_PADDED.real].abs().max() > 1e-3


@every_layout
@torch.no_grad()
def test_sparse_equals_the_authors_forward(family: str) -> None:
    model, plain = routed(family), base(family)
    at = routers(model)
    kept: list[Tensor] = []

    def gate(layer: int, module: str, state: Tensor) -> Tensor:
        kept.append(keeps(at[layer, module], state))
        return kept[-1].float()

    for inputs in BATCHES.values():
        expected = hooked_logits(plain, inputs.given, gate)[inputs.real]
        actual = model(**inputs.given).logits[inputs.real]
        torch.testing.assert_close(actual, expected, **CLOSE)
    share = torch.cat([each.flatten() for each in kept]).float().mean()
    assert 0.1 < share < 0.9, "nothing to compare: routes are all alike"


@every_layout
@torch.no_grad()
def test_no_norm_stands_behind_the_reference_gate(family: str) -> None:
    """It would undo every gate but 0, and the table of names in reference.py would be wrong."""
    inputs, plain = ONE_ROW, base(family)
    expected = plain(**inputs.given).logits
    for module in ("attn", "mlp"):
        halved = hooked_logits(
            plain, inputs.given, lambda _, kind, state, m=module: _half(kind == m, state)
        )
        assert (halved - expected).abs().max() > 0.1


def _half(is_gated: bool, state: Tensor) -> Tensor:
    return torch.full(state.shape[:-1], 0.5 if is_gated else 1.0)
