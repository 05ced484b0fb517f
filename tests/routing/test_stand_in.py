"""The stand-in itself: what it reads, in which dtype, and where its weights may be."""

from collections.abc import Callable

import accelerate
import pytest
import torch
from torch import Tensor, nn

from skipgpt.routing.router import divided_by_rms
from skipgpt.routing.stand_in import StandIn

WIDE = 6
# Weights are float32; what they predict is of size 1 to 10.
CLOSE = {"rtol": 0.0, "atol": 1e-5}


def lively(rank: int = 3) -> StandIn:
    """A stand-in that adds something."""
    stand_in = StandIn(WIDE, rank)
    for parameter in stand_in.parameters():
        nn.init.normal_(parameter)
    return stand_in


class Layer(nn.Module):
    """A stand-in somewhere inside a model."""

    def __init__(self) -> None:
        super().__init__()
        self.stand_in = lively()

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.stand_in(stream)


def test_a_new_stand_in_adds_nothing_and_can_learn_to() -> None:
    stand_in = StandIn(32, rank=4)
    added = stand_in(torch.randn(2, 7, 32))
    assert added.shape == (2, 7, 32)
    assert not added.any()
    (added - 1).square().sum().backward()
    assert stand_in.up.weight.grad.abs().max() > 0
    assert stand_in.up.bias.grad.abs().max() > 0


def test_a_stand_in_is_two_products_of_what_is_normalised() -> None:
    stand_in, entering = lively(), torch.randn(2, 7, WIDE)
    down, up = stand_in.down.weight, stand_in.up.weight
    expected = divided_by_rms(entering) @ (up @ down).T + stand_in.up.bias
    torch.testing.assert_close(stand_in(entering), expected, **CLOSE)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1e4])
def test_a_stand_in_is_blind_to_the_scale_of_the_stream(scale: float) -> None:
    stand_in, entering = lively(), torch.randn(2, 7, WIDE)
    # The 1e-6 under the root shrinks what has an RMS of 0.04 by 3e-4, of sums of size 10.
    torch.testing.assert_close(stand_in(entering * scale), stand_in(entering), rtol=0, atol=5e-3)


def test_a_stand_in_answers_in_the_dtype_of_the_stream_and_computes_in_its_own() -> None:
    stand_in, entering = lively(), torch.randn(2, 7, WIDE).bfloat16()
    assert stand_in(entering).dtype == torch.bfloat16
    wide = stand_in.up(stand_in.down(divided_by_rms(entering.float())))
    # One rounding, at the end: half a unit of 8 bits.
    torch.testing.assert_close(stand_in(entering).float(), wide, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("kind", [lively, Layer])
@torch.no_grad()
def test_a_stand_in_may_be_offloaded_by_itself_or_with_its_model(
    kind: Callable[[], nn.Module],
) -> None:
    made, entering = kind(), torch.randn(2, 7, WIDE)
    expected = made(entering)
    accelerate.cpu_offload(made, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in made.parameters())
    for _ in range(2):
        torch.testing.assert_close(made(entering), expected, **CLOSE)
