import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CLOSE, LEFT_PADDED, families_with
from running.ways import (
    GREEDY,
    LAYOUTS,
    defined,
    every_layout,
    every_policy,
    prompt,
    sparse_model,
)
from skipgpt.errors import ConfigError
from skipgpt.model.state import execution, record_routing
from skipgpt.model.trace import Trace

KERNELS = ("eager", "sdpa")
every_kernel = pytest.mark.parametrize("attention", KERNELS)
LENGTHS = (4, 1, 6)


@every_kernel
@every_layout
@every_policy
@torch.no_grad()
def test_left_padded_rows_score_as_each_alone(family: str, kv: str, attention: str) -> None:
    model = sparse_model(family, kv, attention)
    logits = model(**LEFT_PADDED.given).logits
    for row, real, ids in zip(logits, LEFT_PADDED.real, LEFT_PADDED.rows(), strict=True):
        torch.testing.assert_close(row[real], defined(model, ids[None])[0], **CLOSE)


@every_kernel
@every_layout
@every_policy
@torch.no_grad()
def test_right_padded_rows_score_as_each_alone(family: str, kv: str, attention: str) -> None:
    model = sparse_model(family, kv, attention)
    rows = [ids[:length] for ids, length in zip(prompt(3), LENGTHS, strict=True)]
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with record_routing(model) as trace:
        logits = model(padded, attention_mask=mask.long()).logits
    assert trace.counts().tokens == sum(LENGTHS)
    for row, ids in zip(logits, rows, strict=True):
        torch.testing.assert_close(row[: len(ids)], defined(model, ids[None])[0], **CLOSE)


@every_kernel
@every_layout
@every_policy
@torch.no_grad()
def test_a_row_of_padding_leaves_the_others_alone(family: str, kv: str, attention: str) -> None:
    model = sparse_model(family, kv, attention)
    given = _with_an_empty_row(LEFT_PADDED.given)
    logits = model(**given).logits[[0, 2, 3]]
    assert logits.isfinite().all()
    for row, real, ids in zip(logits, LEFT_PADDED.real, LEFT_PADDED.rows(), strict=True):
        torch.testing.assert_close(row[real], defined(model, ids[None])[0], **CLOSE)


@every_layout
@every_policy
@torch.no_grad()
def test_a_row_of_padding_leaves_the_others_alone_in_generation(family: str, kv: str) -> None:
    model = sparse_model(family, kv)
    together = model.generate(**_with_an_empty_row(LEFT_PADDED.prompt), **GREEDY)[[0, 2, 3]]
    assert torch.equal(together, model.generate(**LEFT_PADDED.prompt, **GREEDY))


@families_with(
    "rows, attention",
    [*itertools.product((1, 2), KERNELS)],
    few=[(1, "sdpa"), (2, "eager")],
    names=LAYOUTS,
)
@every_policy
@torch.no_grad()
def test_packed_documents_score_and_route_as_each_alone(
    family: str, kv: str, rows: int, attention: str
) -> None:
    model, ids = sparse_model(family, kv, attention), prompt(rows)
    starts = torch.cat([torch.arange(length) for length in LENGTHS]).expand(rows, -1)
    with record_routing(model) as packed:
        # A cache would tell transformers that this is one text.
        logits = model(ids, position_ids=starts, use_cache=False).logits
    documents = ids.split(LENGTHS, dim=1)
    with record_routing(model) as alone:
        expected = torch.cat([defined(model, document) for document in documents], dim=1)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert torch.equal(_kept(packed), _kept(alone))
    assert packed.sparsity() == pytest.approx(alone.sparsity())
    assert (expected - defined(model, ids)).abs().max() > 0.1, "documents that see each other"


@pytest.mark.parametrize("kind", ["bool", "float", "float, one for each head"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])  # no windows
@every_policy
@torch.no_grad()
def test_a_mask_of_ones_own_is_kept_to(family: str, kv: str, kind: str) -> None:
    """Two branches after a common stem, as tree drafts have them."""
    model, ids = sparse_model(family, kv), prompt()
    stem, branch = 5, 3
    positions = torch.tensor([*range(stem + branch), *range(stem, stem + branch)])
    seen = torch.ones(11, 11, dtype=torch.bool).tril()
    seen[stem + branch :, stem : stem + branch] = False
    mask = seen.expand(1, 1, 11, 11)
    if kind != "bool":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    if kind == "float, one for each head":
        mask = mask.expand(1, 4, 11, 11)
    logits = model(ids, attention_mask=mask, position_ids=positions[None], use_cache=False).logits
    first, second = ids[:, : stem + branch], ids[:, [*range(stem), *range(stem + branch, 11)]]
    torch.testing.assert_close(logits[:, : stem + branch], defined(model, first), **CLOSE)
    torch.testing.assert_close(logits[:, -branch:], defined(model, second)[:, -branch:], **CLOSE)


@every_layout
@every_policy
@torch.no_grad()
def test_the_logits_of_the_last_tokens_alone_are_the_same(family: str, kv: str) -> None:
    model, ids = sparse_model(family, kv), prompt(2)
    logits = model(ids, logits_to_keep=2).logits
    torch.testing.assert_close(logits, defined(model, ids)[:, -2:], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@every_policy
@torch.no_grad()
def test_attentions_that_are_asked_for_are_given_or_refused(family: str, kv: str) -> None:
    model = sparse_model(family, kv, "eager")
    with pytest.raises(ConfigError, match="output_attentions=True; expected weights of all"):
        model(prompt(2), output_attentions=True)
    with execution(model, "gated"):
        output = model(prompt(2), output_attentions=True)
    assert len(output.attentions) == 3
    for attention in output.attentions:
        assert attention.shape[:2] == (2, 4)


def _with_an_empty_row(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The second of four rows is padding throughout."""
    rows = {name: value[[0, 0, 1, 2]] for name, value in given.items()}
    rows["attention_mask"][1] = 0
    rows["input_ids"][1] = 0
    return rows


def _kept(trace: Trace) -> Tensor:
    """All keep decisions [sites, B, T], the forwards one after the other."""
    parts: list[Any] = [torch.stack(step.keeps()) for step in trace.steps]
    return torch.cat(parts, dim=2)
