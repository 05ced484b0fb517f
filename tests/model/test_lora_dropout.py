import pytest
import torch
from torch import Tensor, nn

from cases import routed
from runs import rows, tiny_config
from skipgpt.model.state import Execution, execution, use_noise, use_rule
from skipgpt.routing.decision import Threshold
from skipgpt.routing.noise import RowNoise
from skipgpt.training.loop.lora_dropout import RowDropout
from skipgpt.training.stages import prepare

IDS = rows(4, 11)


def _model() -> nn.Module:
    torch.manual_seed(2)
    changes = {"lora_stage__dropout": 0.5, "lora_stage__targets": "all-linear"}
    model = prepare(routed(normalize=True).train(), "lora", tiny_config(**changes))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def _logits(model: nn.Module, ids: Tensor, places: list[int], kind: Execution = "sparse") -> Tensor:
    noise = RowNoise(0, torch.tensor(places))
    with execution(model, kind), use_rule(model, Threshold()), use_noise(model, noise):
        return model(input_ids=ids, use_cache=False).logits


def test_a_rows_dropout_does_not_depend_on_the_rows_beside_it() -> None:
    model = _model()
    together = _logits(model, IDS, [4, 5, 6, 7])
    apart = [_logits(model, IDS[n : n + 1], [4 + n]) for n in range(4)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-4)
    moved = _logits(model, IDS, [5, 6, 7, 8])
    assert (moved - together).abs().max() > 1e-2


def test_packed_tokens_take_their_own_rows_of_the_mask() -> None:
    model = _model()
    sparse, gated = (_logits(model, IDS, [0, 1, 2, 3], kind) for kind in ("sparse", "gated"))
    torch.testing.assert_close(sparse, gated, rtol=0, atol=1e-4)


def test_the_share_that_stays_and_its_scale_are_those_of_dropout() -> None:
    model = _model()
    (dropout, *_) = [m for m in model.modules() if isinstance(m, RowDropout)]
    with use_noise(model, RowNoise(0, torch.arange(4))):
        dropped = dropout(torch.ones(4, 50, 64))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


def test_without_rows_and_in_evaluation_it_is_torchs_own() -> None:
    model = _model()
    (dropout, *_) = [m for m in model.modules() if isinstance(m, RowDropout)]
    torch.manual_seed(0)
    mine = dropout(torch.ones(2, 3, 8))
    torch.manual_seed(0)
    assert torch.equal(mine, nn.functional.dropout(torch.ones(2, 3, 8), 0.5))
    assert torch.equal(dropout.eval()(torch.ones(2, 3)), torch.ones(2, 3))


def test_modules_that_no_token_keeps_take_part_with_a_gradient_of_zero() -> None:
    model = _model()
    noise = RowNoise(0, torch.arange(4))
    rule = Threshold(1e9)
    with execution(model, "sparse"), use_rule(model, rule), use_noise(model, noise):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)
