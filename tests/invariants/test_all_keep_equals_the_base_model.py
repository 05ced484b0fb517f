import pytest
import torch

from cases import CLOSE, Inputs, base, every_batch, every_family
from reference import reference_logits
from skipgpt.model.surgery import add_routers
from skipgpt.model.trace import deciding, execution
from skipgpt.routing.decision import KEEP_ALL, Forced


@every_batch
@every_family
@torch.no_grad()
def test_all_keep_equals_the_base_model_in_every_execution(family: str, inputs: Inputs) -> None:
    model = base(family)
    expected = model(**inputs.given).logits[inputs.real]
    add_routers(model)

    for rule in (KEEP_ALL, Forced()):
        for kind in ("gated", "sparse"):
            with deciding(model, rule), execution(model, kind):
                torch.testing.assert_close(
                    model(**inputs.given).logits[inputs.real], expected, **CLOSE
                )


@every_batch
@every_family
@torch.no_grad()
def test_dense_execution_is_the_base_model_bit_for_bit(family: str, inputs: Inputs) -> None:
    model = base(family)
    expected = model(**inputs.given).logits
    add_routers(model)

    with execution(model, "dense"):
        assert torch.equal(model(**inputs.given).logits, expected)
    # The routers do skip: `dense` is what made the difference.
    assert (model(**inputs.given).logits - expected).abs().max() > 0.1


@every_family
@torch.no_grad()
def test_the_reference_with_open_gates_equals_the_base_model(family: str) -> None:
    model, inputs = base(family), Inputs((0,), padded=False)

    logits = reference_logits(model, inputs.ids[0], lambda layer, module, state: torch.ones(()))

    torch.testing.assert_close(logits, model(**inputs.given).logits[0], **CLOSE)


@pytest.mark.parametrize("kind", ["gated", "sparse"])
@every_family
def test_all_keep_gives_the_base_models_gradients(family: str, kind: str) -> None:
    inputs = Inputs((3, 0, 6), padded=True)
    model = base(family)
    names = [name for name, _ in model.named_parameters()]
    expected = _gradients(model, names, inputs)
    add_routers(model)

    with deciding(model, KEEP_ALL), execution(model, kind):
        actual = _gradients(model, names, inputs)

    for name in names:
        # Gradients reach 100; 1e-5 of that is a hundred roundings.
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-4, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def _gradients(model: torch.nn.Module, names: list[str], inputs: Inputs) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    loss = model(**inputs.given).logits[inputs.real].square().sum()
    grads = torch.autograd.grad(loss, [parameters[name] for name in names])
    return dict(zip(names, grads, strict=True))
