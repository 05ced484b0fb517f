import pytest
import torch
from torch import nn

from skipgpt.config import RouterConfig
from skipgpt.routing.router import (
    KEEP,
    SKIP,
    LinearMap,
    LinearRouter,
    MLPRouter,
    Router,
    build_router,
    divided_by_rms,
    input_scale,
    inverse_rms,
    inverse_rms_as_numbers,
    margins,
    mean_of_rows,
    set_constant,
)

HEADS = ["linear", "mlp"]
# Sums of 32 float32 products of size 1: a few units of 1.2e-7 each.
EXACT = {"rtol": 0.0, "atol": 2e-6}


def router(head: str, size: int = 32) -> Router:
    made = build_router(RouterConfig(head=head), size)
    for parameter in made.parameters():
        nn.init.normal_(parameter)  # biases, too
    return made


@pytest.mark.parametrize("head", HEADS)
def test_the_margin_is_the_keep_logit_minus_the_skip_logit(head: str) -> None:
    made, hidden = router(head), torch.randn(2, 7, 32)
    logits = made(hidden)
    assert logits.shape == (2, 7, 2)
    assert (KEEP, SKIP) == (0, 1)
    torch.testing.assert_close(
        made.margin(hidden), logits[..., 0] - logits[..., 1], rtol=1e-5, atol=2e-5
    )


def test_the_linear_head_is_one_map_and_the_mlp_head_the_authors_two() -> None:
    shapes = {
        head: {name: tuple(p.shape) for name, p in router(head).named_parameters()}
        for head in HEADS
    }
    assert shapes["linear"] == {"weight": (2, 32), "bias": (2,)}
    assert shapes["mlp"] == {
        "up.weight": (8, 32),
        "up.bias": (8,),
        "out.weight": (2, 8),
        "out.bias": (2,),
    }


def test_the_mlp_head_has_a_relu_between_its_maps() -> None:
    made, hidden = router("mlp"), torch.randn(5, 32)
    inner = (hidden @ made.up.weight.T + made.up.bias).clamp(min=0)
    torch.testing.assert_close(made(hidden), inner @ made.out.weight.T + made.out.bias)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_mlp_head_has_at_least_one_inner_unit(size: int) -> None:
    assert MLPRouter(size).up.out_features == 1


@pytest.mark.parametrize("head", HEADS)
def test_a_new_router_has_kaiming_weights_and_no_bias(head: str) -> None:
    made = build_router(RouterConfig(head=head), 64)
    *inner, last = [m for m in made.modules() if isinstance(m, LinearMap)]
    assert not last.bias.any()
    # Kaiming-uniform: sqrt(3 / fan in) bounds a linear map's weights, sqrt(6 / fan in) a ReLU's.
    for layer, gain in [(last, 3), *((layer, 6) for layer in inner)]:
        bound = (gain / layer.in_features) ** 0.5
        assert not layer.bias.any()
        assert layer.weight.abs().max() <= bound
        assert layer.weight.abs().max() > 0.8 * bound


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("margin", [-3.0, 0.0, 4.5])
def test_a_constant_router_answers_the_same_whatever_it_reads(head: str, margin: float) -> None:
    made = router(head)
    set_constant(made, margin)
    answer = made.margin(torch.randn(2, 7, 32) * 100)
    assert torch.equal(answer, torch.full((2, 7), margin))


def test_the_router_reads_the_hidden_state_as_it_is_unless_told_to_normalize() -> None:
    assert input_scale(torch.randn(2, 7, 32), RouterConfig()) == 1.0


@pytest.mark.parametrize("scale", [0.1, 1.0, 1000.0])
def test_a_normalized_input_has_unit_rms_and_its_direction(scale: float) -> None:
    hidden = torch.randn(2, 7, 32) * scale
    read = divided_by_rms(hidden)
    # The 1e-6 under the root shrinks an RMS of 0.1 by 5e-5.
    torch.testing.assert_close(read.square().mean(-1), torch.ones(2, 7), rtol=0, atol=2e-4)
    alike = torch.cosine_similarity(read, hidden, dim=-1)
    torch.testing.assert_close(alike, torch.ones(2, 7), **EXACT)
    given = input_scale(hidden, RouterConfig(normalize=True))
    torch.testing.assert_close(hidden * given, read)


def test_a_normalized_input_keeps_its_dtype_and_survives_zero() -> None:
    read = divided_by_rms(torch.zeros(1, 1, 8, dtype=torch.bfloat16))
    assert read.dtype == torch.bfloat16
    assert not read.any()


@pytest.mark.parametrize("head", HEADS)
def test_a_scale_acts_as_if_the_input_were_scaled(head: str) -> None:
    made, hidden = router(head), torch.randn(2, 7, 32)
    for scale in (0.3, torch.rand(2, 7, 1)):
        torch.testing.assert_close(
            made.margin(hidden, scale), made.margin(hidden * scale), rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rms_of_few_tokens_is_the_same_as_numbers(dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 1, 32, dtype=dtype)
    expected = inverse_rms(hidden).flatten().tolist()
    assert inverse_rms_as_numbers(hidden) == pytest.approx(expected, rel=1e-6)
    assert inverse_rms_as_numbers(torch.zeros(1, 1, 32)) == pytest.approx([1000.0])


@pytest.mark.parametrize("head", HEADS)
def test_a_float32_router_reads_a_bfloat16_stream_in_float32(head: str) -> None:
    made, hidden = router(head), torch.randn(2, 7, 32).bfloat16()
    assert made.margin(hidden).dtype == torch.float32
    assert torch.equal(made.margin(hidden), made.margin(hidden.float()))
    both = margins(hidden, made, LinearRouter(32))
    assert [each.dtype for each in both] == [torch.float32] * 2


def test_the_mean_margin_of_a_row_leaves_out_its_padding() -> None:
    margin = torch.tensor([[1.0, 2.0, 6.0], [900.0, 1.0, 2.0], [9.0, 9.0, -4.0], [5.0, 5.0, 5.0]])
    assert mean_of_rows(margin[:1], None).tolist() == [[3.0]]
    real = torch.tensor([[True] * 3, [False, True, True], [False, False, True], [False] * 3])
    assert mean_of_rows(margin, real).tolist() == [[3.0], [1.5], [-4.0], [0.0]]
