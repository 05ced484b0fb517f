"""Closeness against plain transformers: the base loaded by itself, one token after another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import reference
from runs import rows, shared_checkpoint, tiny_config
from skipgpt.analysis import trace_dense, trace_text
from skipgpt.checkpoint.loading import load
from skipgpt.config.settings import from_dict, to_dict
from skipgpt.evaluation import closeness
from skipgpt.evaluation.closeness import Closeness, ClosenessSum
from skipgpt.evaluation.perplexity import Perplexity, perplexity, perplexity_of_spans, total_loss
from skipgpt.evaluation.windows import sliding_spans
from skipgpt.export.merged import export_merged
from skipgpt.model.auto import register
from skipgpt.model.lora import with_lora
from skipgpt.model.state import execution
from skipgpt.model.surgery import add_routers, remove_routers
from tiny import byte_tokenizer, tiny_base, tiny_routed


def by_hand(base: nn.Module, model: nn.Module, rows: Iterable[Tensor]) -> Closeness:
    kl, agreement, _ = reference.closeness(base, model, rows)
    return Closeness(kl, agreement)


def uneven() -> list[Tensor]:
    """Rows of 16, 16, 9 and 5 tokens."""
    return [row[:length] for row, length in zip(rows(4), (16, 16, 9, 5), strict=True)]


def pair() -> tuple[nn.Module, nn.Module]:
    """A base model and the same with routers that skip about half."""
    return tiny_base(initializer_range=0.2), tiny_routed(initializer_range=0.2)


def healed() -> nn.Module:
    """The same with a LoRA adapter that is not zero and not merged."""
    model = with_lora(tiny_routed(initializer_range=0.2), tiny_config().lora_stage).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def agrees(found: Closeness | None, expected: Closeness) -> None:
    assert found is not None
    assert found.kl_per_token == pytest.approx(expected.kl_per_token, rel=1e-4)
    assert found.agreement == expected.agreement
    assert found.dense == expected.dense


@pytest.mark.parametrize("kind", ["sparse", "gated", "auto"])
def test_closeness_is_that_of_the_base_model_at_the_same_tokens_as_the_loss(kind: str) -> None:
    base, model = pair()
    with execution(model, kind):
        found = perplexity(model, uneven(), batch_size=3, closeness_to=model)
        kl, agreement, tokens = reference.closeness(base, model, uneven())
    agrees(found.closeness, Closeness(kl, agreement))
    assert found.tokens == tokens == 15 + 15 + 8 + 4
    assert kl > 0.01
    assert 0 < agreement < 1


def test_only_the_scored_tokens_of_a_span_count() -> None:
    base, model = pair()
    spans = sliding_spans(rows(1, 40)[0], 16, 5)
    found = perplexity_of_spans(model, spans, batch_size=2, closeness_to=model)
    ids, firsts = [span.ids for span in spans], [span.first for span in spans]
    kl, agreement, tokens = reference.closeness(base, model, ids, firsts)
    agrees(found.closeness, Closeness(kl, agreement))
    assert found.tokens == tokens == 39


def test_an_adapter_that_is_not_merged_is_switched_off_for_the_dense_model() -> None:
    base, model = tiny_base(initializer_range=0.2), healed()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    for kind in ("sparse", "dense"):
        with execution(model, kind):
            found = perplexity(model, rows(5), batch_size=2, closeness_to=model)
            expected = by_hand(base, model, rows(5))
            assert expected.kl_per_token > 0.01
            agrees(found.closeness, expected)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_a_frozen_adapter_stays_frozen() -> None:
    model, _ = load(shared_checkpoint())
    perplexity(model, rows(2), closeness_to=model)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_a_merged_adapter_is_part_of_the_dense_model_and_that_is_said() -> None:
    merged, _ = load(shared_checkpoint(), merge=True)
    found = perplexity(merged, rows(5), closeness_to=merged).closeness
    with execution(merged, "dense"):
        again = perplexity(merged, rows(5), closeness_to=merged).closeness
    assert again == Closeness(0.0, 1.0, "all kept")
    assert found.dense == "all kept"
    base = AutoModelForCausalLM.from_pretrained(shared_checkpoint().parent / "base")
    expected = by_hand(base, merged, rows(5))
    agrees(perplexity(merged, rows(5), closeness_to=base).closeness, expected)
    assert found.kl_per_token != pytest.approx(expected.kl_per_token, rel=0.01)


def test_a_merged_export_is_measured_to_itself_with_everything_kept(tmp_path: Path) -> None:
    export_merged(shared_checkpoint(), tmp_path / "merged")
    register("llama")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    merged, _ = load(shared_checkpoint(), merge=True)
    found, expected = (perplexity(m, rows(3), closeness_to=m).closeness for m in (model, merged))
    assert found == expected
    assert found.dense == "all kept"


def test_dense_execution_is_exactly_the_dense_model() -> None:
    model = tiny_routed(initializer_range=0.2)
    with execution(model, "dense"):
        found = perplexity(model, uneven(), batch_size=2, closeness_to=model)
    assert found.closeness == Closeness(0.0, 1.0)
    assert set(found.sparsity.values()) == {0.0}


def test_chunks_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_routed(initializer_range=0.2)
    expected = perplexity(model, uneven(), closeness_to=model).closeness
    monkeypatch.setattr(closeness, "CHUNK_ELEMENTS", 3 * model.config.vocab_size + 1)
    agrees(perplexity(model, uneven(), batch_size=1, closeness_to=model).closeness, expected)


def test_measuring_closeness_changes_nothing_else_and_costs_one_forward_a_batch() -> None:
    model, forwards = tiny_routed(initializer_range=0.2), []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    plain = perplexity(model, rows(4), batch_size=2)
    assert (plain.closeness, len(forwards)) == (None, 2)
    found = perplexity(model, rows(4), batch_size=2, closeness_to=model)
    assert len(forwards) == 2 + 4
    assert Perplexity(**{**vars(found), "closeness": None}) == plain


def test_a_dense_model_in_training_mode_is_measured_without_dropout_and_put_back() -> None:
    base = tiny_base(initializer_range=0.2, attention_dropout=0.5).train()
    model = tiny_routed(initializer_range=0.2)
    found = perplexity(model, rows(3), closeness_to=base).closeness
    assert base.training
    agrees(found, perplexity(model, rows(3), closeness_to=model).closeness)


def test_low_precision_logits_are_compared_in_float32() -> None:
    model = tiny_routed(initializer_range=0.2).bfloat16()
    for layer in model.model.layers:
        layer.attn_router.float(), layer.mlp_router.float()
    base = tiny_base(initializer_range=0.2).bfloat16()
    found = perplexity(model, rows(4), closeness_to=model).closeness
    expected = by_hand(base, model, rows(4))
    assert found.kl_per_token == pytest.approx(expected.kl_per_token, rel=1e-3)
    assert found.agreement == expected.agreement


def test_a_trace_has_the_same_closeness_and_the_same_norms_as_without() -> None:
    model, tokenizer = tiny_routed(initializer_range=0.2), byte_tokenizer()
    plain = trace_text(model, tokenizer, uneven(), batch_size=2)
    found = trace_text(model, tokenizer, uneven(), batch_size=2, closeness_to=model)
    expected = perplexity(model, uneven(), batch_size=2, closeness_to=model)
    assert found.measured == expected
    assert torch.equal(found.norm, plain.norm)
    assert torch.equal(found.keep, plain.keep)
    assert trace_dense(model, tokenizer, uneven()).norm.shape == plain.norm.shape


def test_the_mean_of_two_models_is_weighted_by_their_share() -> None:
    mixed = Closeness(0.5, 0.9).mixed(Closeness(1.5, 0.5), 0.25)
    assert (mixed.kl_per_token, mixed.agreement) == (0.75, pytest.approx(0.8))


def test_a_result_with_closeness_comes_back_from_json_and_an_older_one_is_read() -> None:
    measured = Perplexity.of(2.0, 10, closeness=Closeness(0.25, 0.75, "all kept"))
    assert from_dict(Perplexity, to_dict(measured), "reading") == measured
    older = to_dict(measured)
    del older["closeness"]
    assert from_dict(Perplexity, older, "reading").closeness is None


def test_a_result_reads_as_a_line() -> None:
    line = "KL to {} 0.0312 nats per token, top-1 agreement 93.1%"
    assert str(Closeness(0.03125, 0.931)) == line.format("dense")
    assert str(Closeness(0.03125, 0.931, "all kept")) == line.format("everything kept")


def test_a_plain_transformers_model_can_be_compared_by_hand() -> None:
    base, model = pair()
    remove_routers(model)
    total = ClosenessSum(base)
    ids = rows(2)
    total.add(ids, model(ids).logits)
    assert total.mean() == Closeness(0.0, 1.0)
    assert total.tokens == 30
    assert total_loss(add_routers(model), ids)[1] == 30
