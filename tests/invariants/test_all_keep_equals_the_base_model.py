import torch
from torch import Tensor, nn

from cases import (
    BATCHES,
    CLOSE,
    KEEP_ALL,
    LEFT_PADDED,
    ONE_ROW,
    assert_same_gradients,
    base,
    every_family,
    every_layout,
    families,
    routed,
)
from reference import hooked_logits, reference_logits
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import add_routers
from skipgpt.routing.decision import Forced

LOOPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""The families that the per-token reference knows."""


@every_family
@torch.no_grad()
def test_all_keep_equals_the_base_model_bit_for_bit_in_every_execution(family: str) -> None:
    model = base(family)
    expected = {name: model(**inputs.given).logits for name, inputs in BATCHES.items()}
    add_routers(model)

    for name, inputs in BATCHES.items():
        for kind in ("gated", "sparse"):
            with use_rule(model, KEEP_ALL), execution(model, kind):
                logits = model(**inputs.given).logits
            assert torch.equal(logits[inputs.real], expected[name][inputs.real]), (name, kind)
        # The routers do skip: the rule is what made them equal.
        assert (model(**inputs.given).logits - expected[name])[inputs.real].abs().max() > 0.1


@every_layout
@torch.no_grad()
def test_all_keep_equals_the_base_model_bit_for_bit_with_stand_ins(family: str) -> None:
    expected = base(family)(**LEFT_PADDED.given).logits[LEFT_PADDED.real]
    model = routed(family, stand_in=3)
    for kind in ("gated", "sparse"):
        with use_rule(model, KEEP_ALL), execution(model, kind):
            assert torch.equal(model(**LEFT_PADDED.given).logits[LEFT_PADDED.real], expected), kind


@every_layout
@torch.no_grad()
def test_all_keep_equals_the_base_model_in_every_step_of_a_cache(family: str) -> None:
    model = base(family)
    expected = _steps(model)
    add_routers(model)
    for kind in ("gated", "sparse"):
        with use_rule(model, KEEP_ALL), execution(model, kind):
            torch.testing.assert_close(_steps(model), expected, rtol=0, atol=1e-6)


@every_layout
@torch.no_grad()
def test_dense_execution_is_the_base_model_bit_for_bit(family: str) -> None:
    model = base(family)
    expected = model(**LEFT_PADDED.given).logits
    add_routers(model)
    with execution(model, "dense"):
        assert torch.equal(model(**LEFT_PADDED.given).logits, expected)


@every_layout
def test_all_keep_gives_the_base_models_gradients(family: str) -> None:
    model = base(family)
    names = [name for name, _ in model.named_parameters()]
    expected = _gradients(model, names)
    add_routers(model)
    for kind in ("gated", "sparse"):
        with use_rule(model, KEEP_ALL), execution(model, kind):
            actual = _gradients(model, names)
        assert_same_gradients(actual, expected)


@every_layout
@torch.no_grad()
def test_all_keep_in_training_mode_has_the_base_models_dropout(family: str) -> None:
    model = base(family).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.3
    expected = _seeded_logits(model)
    add_routers(model).train()
    with use_rule(model, Forced()), execution(model, "gated"):
        assert torch.equal(_seeded_logits(model), expected)


@families(LOOPED)
@torch.no_grad()
def test_the_per_token_reference_with_open_gates_equals_the_base_model(family: str) -> None:
    model = base(family)
    logits = reference_logits(model, ONE_ROW.ids[0], lambda layer, module, state: torch.ones(()))
    torch.testing.assert_close(logits, model(**ONE_ROW.given).logits[0], **CLOSE)


@every_layout
@torch.no_grad()
def test_the_authors_forward_with_open_gates_equals_the_base_model(family: str) -> None:
    model = base(family)
    expected = model(**LEFT_PADDED.given).logits
    logits = hooked_logits(
        model, LEFT_PADDED.given, lambda layer, module, state: torch.ones(state.shape[:-1])
    )
    torch.testing.assert_close(logits[LEFT_PADDED.real], expected[LEFT_PADDED.real], **CLOSE)


def _steps(model: nn.Module) -> Tensor:
    """Logits [tokens, V] of a prefill, a further chunk and two decoded tokens."""
    logits, cache, start = [], None, 0
    for end in (6, 9, 10, 11):
        made = model(**LEFT_PADDED.chunk(start, end), past_key_values=cache, use_cache=True)
        logits.append(made.logits)
        cache, start = made.past_key_values, end
    return torch.cat(logits, dim=1)[LEFT_PADDED.real]


def _seeded_logits(model: nn.Module) -> Tensor:
    torch.manual_seed(7)
    return model(**LEFT_PADDED.given, use_cache=False).logits[LEFT_PADDED.real]


def _gradients(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    loss = model(**LEFT_PADDED.given).logits[LEFT_PADDED.real].square().sum()
    grads = torch.autograd.grad(loss, [parameters[name] for name in names])
    return dict(zip(names, grads, strict=True))
