import pytest
import torch
from torch import Tensor, nn

from cases import CLOSE, Inputs, every_batch, every_family, module_decisions, routed
from skipgpt.model.surgery import routers
from skipgpt.model.trace import deciding, execution, record_routing
from skipgpt.routing.decision import Forced, Site


@every_batch
@every_family
@torch.no_grad()
def test_sparse_equals_gated_on_the_routers_own_routes(family: str, inputs: Inputs) -> None:
    _compare_values(routed(family), inputs)


@pytest.mark.parametrize("reads", ["layer_input", "module_input"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("normalize", [False, True])
@every_family
@torch.no_grad()
def test_sparse_equals_gated_for_every_kind_of_router(
    family: str, reads: str, head: str, normalize: bool
) -> None:
    model = routed(family, input=reads, head=head, normalize=normalize)
    _compare_values(model, Inputs((3, 0, 6), padded=True))


@pytest.mark.parametrize("shape", ["uneven", "one row keeps all", "one row skips all", "one token"])
@every_family
@torch.no_grad()
def test_sparse_equals_gated_however_unevenly_rows_are_kept(family: str, shape: str) -> None:
    model, inputs = routed(family), Inputs((0, 0, 0), padded=False)
    rule = Forced(_routes(inputs, shape))
    with deciding(model, rule):
        with execution(model, "gated"):
            expected = model(**inputs.given).logits
        torch.testing.assert_close(model(**inputs.given).logits, expected, **CLOSE)


@every_batch
@every_family
def test_sparse_equals_gated_in_every_parameters_gradient(family: str, inputs: Inputs) -> None:
    model = routed(family)
    for router in routers(model).values():
        router.requires_grad_(False)

    expected, actual = (_gradients(model, inputs, kind) for kind in ("gated", "sparse"))

    assert expected.keys() == actual.keys()
    for name in expected:
        # Gradients reach 100; 1e-5 of that is a hundred roundings.
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-4, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert max(grad.abs().max() for grad in expected.values()) > 1


@every_family
def test_sparse_equals_gated_in_low_rank_gradients(family: str) -> None:
    """As stage `lora` trains: frozen base, small updates on a projection of each module."""
    model, inputs = routed(family), Inputs((3, 0, 6), padded=True)
    model.requires_grad_(False)
    for layer in model.model.layers:
        for owner, name in ((layer.self_attn, "q_proj"), (layer.mlp, "down_proj")):
            setattr(owner, name, _LowRank(getattr(owner, name)))

    expected, actual = (_gradients(model, inputs, kind) for kind in ("gated", "sparse"))

    assert len(expected) == 12
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-3)
        assert expected[name].abs().max() > 1e-3


class _LowRank(nn.Module):
    """What PEFT puts in the place of a linear layer."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Parameter(torch.randn(2, inner.in_features) * 0.1)
        self.up = nn.Parameter(torch.randn(inner.out_features, 2) * 0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) + hidden @ self.down.T @ self.up.T


def _routes(inputs: Inputs, shape: str) -> dict[Site, Tensor]:
    keep = {
        Site(n, m): torch.rand(inputs.ids.shape) < 0.5 for n in range(3) for m in ("attn", "mlp")
    }
    for each in keep.values():
        if shape == "uneven":
            each[1] = torch.arange(inputs.tokens) == 4
        elif shape == "one row keeps all":
            each[0] = True
        elif shape == "one row skips all":
            each[2] = False
        else:
            each[:] = False
            each[1, 7] = True
    return keep


def _compare_values(model: nn.Module, inputs: Inputs) -> None:
    with execution(model, "gated"), record_routing(model) as trace:
        expected = model(**inputs.given).logits
    keeps = torch.stack([each.keep for each in module_decisions(trace.steps[0].decisions)])
    assert 0.1 < keeps.float().mean() < 0.9, "nothing to compare: routes are all alike"
    actual = model(**inputs.given).logits
    torch.testing.assert_close(actual[inputs.real], expected[inputs.real], **CLOSE)


def _gradients(model: nn.Module, inputs: Inputs, kind: str) -> dict[str, Tensor]:
    model.zero_grad()
    with execution(model, kind):
        model(**inputs.given).logits[inputs.real].square().sum().backward()
    # A module that ran for no token has no gradient where it did not run, zero where it was gated.
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
