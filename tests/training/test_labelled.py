"""Logits where a label is: losses and gradients of all tokens, from fewer rows of the head."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import skipgpt.training.loop.trainer as trainer_module
from cases import every_layout, routed
from conftest import tiny_routed
from runs import rows, stage_trainer, tiny_config
from skipgpt.config import LoraStage, Stage
from skipgpt.model.lora import with_lora
from skipgpt.training.loop.labelled import NO_LABEL, labelled_rows

IDS = rows(3, 9)
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0  # padded on the left
MASK[1, 6:] = 0  # and on the right


def labels(*, prompt: int = 0) -> Tensor:
    made = IDS.masked_fill(MASK == 0, NO_LABEL)
    made[:, :prompt] = NO_LABEL
    return made


def loss_and_gradients(
    model: nn.Module, inputs: dict[str, Tensor], **more: object
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**inputs, **more, use_cache=False).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compare(model: nn.Module, inputs: dict[str, Tensor], **more: object) -> None:
    expected, gradients = loss_and_gradients(model, inputs, **more)
    with labelled_rows(model, inputs) as given:
        got, others = loss_and_gradients(model, given, **more)
    assert gradients.keys() == others.keys()
    # The same numbers in sums of another order.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@every_layout
def test_loss_and_gradients_are_those_of_all_tokens(family: str) -> None:
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": labels(prompt=3)}
    compare(routed(family), inputs)


@pytest.mark.parametrize("prompt", [0, 5, 8])
def test_they_are_so_wherever_labels_are_and_however_loss_is_divided(prompt: int) -> None:
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": labels(prompt=prompt)}
    for more in ({}, {"num_items_in_batch": torch.tensor(40)}):
        compare(tiny_routed(), inputs, **more)
    compare(with_lora(tiny_routed(), LoraStage(rank=2, dropout=0.0)), inputs)


def head_rows(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out[..., 0].numel()))
    with labelled_rows(model, inputs) as given:
        model(**given, use_cache=False)
    hook.remove()
    assert not model.lm_head._forward_pre_hooks
    return seen[0]


def test_the_head_sees_labelled_tokens_and_one_more() -> None:
    model, given = tiny_routed(), {"input_ids": IDS, "attention_mask": MASK}
    # Labels at 5, 6 and 9 places of the rows; the first of a row has no token before it that
    # predicts it, except behind padding.
    assert head_rows(model, given | {"labels": labels()}) == 5 + 5 + 8 + 1
    assert head_rows(model, given | {"labels": labels(prompt=8)}) == 1 + 0 + 1 + 1
    nothing = torch.full_like(IDS, NO_LABEL)
    assert head_rows(model, given | {"labels": nothing}) == 1


def test_packed_text_is_left_as_it_is() -> None:
    model, inputs = tiny_routed(), {"input_ids": IDS, "labels": IDS}
    with labelled_rows(model, inputs) as given:
        assert given is inputs
    assert head_rows(model, inputs) == IDS.numel()
    assert head_rows(model, {"input_ids": IDS}) == IDS.numel()


@pytest.mark.parametrize("stage", ["router", "lora"])
def test_stages_compute_no_logits_in_vain(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": labels(prompt=5)}

    def gradients(folder: str) -> tuple[int, dict[str, Tensor]]:
        model = tiny_routed()
        torch.manual_seed(7)
        trainer = stage_trainer(model, stage, tiny_config(), IDS, tmp_path / folder)
        seen: list[int] = []
        head = model.get_output_embeddings()
        head.register_forward_hook(lambda _, __, out: seen.append(out[..., 0].numel()))
        samples, items = trainer.get_batch_samples(iter([batch]), 1, IDS.device)
        torch.manual_seed(7)
        trainer.training_step(trainer.model, samples[0], items)
        named = trainer.model.named_parameters()
        return seen[0], {name: p.grad for name, p in named if p.grad is not None}

    count, short = gradients("short")
    monkeypatch.setattr(trainer_module, "labelled_rows", lambda _, inputs: nullcontext(inputs))
    whole, expected = gradients("whole")
    assert (count, whole) == (4 + 1 + 4 + 1, IDS.numel())
    assert any(gradient.any() for gradient in expected.values())
    assert short.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(short[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_measuring_the_sparsity_of_a_step_asks_for_no_logits(tmp_path: Path) -> None:
    model = tiny_routed()
    config = tiny_config(accumulation=2, batch_size=1)
    trainer = stage_trainer(model, "router", config, IDS, tmp_path)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out[..., 0].numel()))
    batches = [
        {"input_ids": IDS[:1], "labels": IDS[:1]},
        {"input_ids": IDS[1:2], "labels": IDS[1:2]},
    ]
    trainer.get_batch_samples(iter(batches), 2, IDS.device)
    assert seen == [1, 1]
