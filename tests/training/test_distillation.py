"""KL to the dense model as a loss: torch's own values, gradients for the routed model alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from cases import base, routed
from runs import rows, stage_trainer, tiny_config
from skipgpt.model.surgery import train_only
from skipgpt.training.distillation import NO_LABEL, dense_logits, distilled_loss


def _some() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dense, student = torch.randn(2, 3, 7, 11, generator=generator).unbind()
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[1, 4:] = NO_LABEL
    return dense, student, labels


def test_it_sums_over_tokens_whose_next_token_has_a_label() -> None:
    dense, student, labels = _some()
    expected = 0.0
    for row, given in enumerate(labels):
        for at in range(6):
            if given[at + 1] != NO_LABEL:
                p, q = dense[row, at].softmax(-1), student[row, at].softmax(-1)
                expected += (p * (p / q).log()).sum().item()
    assert abs(distilled_loss(dense, student, labels, 0.5, items=1)[2].item() - expected) < 1e-5


def test_a_share_mixes_it_with_the_loss_on_text() -> None:
    dense, student, labels = _some()
    mixed, text, divergence = distilled_loss(dense, student, labels, 0.25, items=10)
    plain = cross_entropy(student[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(text, plain / 10)
    torch.testing.assert_close(mixed, 0.25 * divergence + 0.75 * text)


def test_at_a_share_of_one_the_text_teaches_nothing() -> None:
    dense, student, labels = _some()
    student.requires_grad_()
    gradients = []
    for given in (labels, labels.clone().masked_fill(labels != NO_LABEL, 3)):
        mixed, _, _ = distilled_loss(dense, student, given, 1.0)
        gradients.append(torch.autograd.grad(mixed, student)[0])
    assert torch.equal(*gradients)


def test_the_teacher_is_the_base_model_without_adapter_and_dropout() -> None:
    from peft import LoraConfig, get_peft_model

    model, ids = routed("llama"), rows(2, 9)
    model = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    ).train()
    with torch.no_grad():
        plain = base("llama")(input_ids=ids).logits
    torch.testing.assert_close(dense_logits(model, {"input_ids": ids, "labels": ids}), plain)
    assert model.training


def test_a_training_step_descends_by_it(tmp_path: Path) -> None:
    config = tiny_config(
        "default", router_stage__steps=12, router_stage__alpha=0, router_stage__noise=0
    )
    model = routed("llama", normalize=True, stand_in=2)
    train_only(model, "router", "stand_in")
    trainer = stage_trainer(model, "router", config, rows(), tmp_path)
    trainer.train()
    lines = [line["kl_to_dense"] for line in trainer.state.log_history if "kl_to_dense" in line]
    assert len(lines) == 12
    assert sum(lines[-4:]) < sum(lines[:4])
