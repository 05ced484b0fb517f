"""Each form of evaluation scores the tokens that it should."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import nn
from torch.nn.functional import log_softmax

from skipgpt.config import DataConfig
from skipgpt.errors import ConfigError, DataError
from skipgpt.evaluation.protocols import CutText, Form, cut_text
from skipgpt.evaluation.text_result import TextResult, measure_text
from skipgpt.evaluation.windows import document_spans, sliding_spans
from skipgpt.model.base import load_base
from skipgpt.model.state import execution, record_routing
from skipgpt.model.surgery import add_routers
from texts import SENTENCE, piped, write
from tiny import byte_tokenizer, tiny_routed

TOKENIZER = byte_tokenizer()


TEXTS = ["The cat sat on the mat.", "Ünïcode wörds, twice as many bytes.", "x"]


@pytest.fixture
def model() -> nn.Module:
    return tiny_routed(initializer_range=0.2)


@pytest.fixture
def documents(tmp_path: Path) -> str:
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    return str(path)


def measured(
    model: nn.Module, sources: list[str], form: Form, tokenizer: Any = TOKENIZER, **options: Any
) -> tuple[CutText, TextResult]:
    cut = cut_text(sources, tokenizer, model, form, **options)
    return cut, measure_text(model, cut, batch_size=3)


@torch.no_grad()
def nats(model: nn.Module, ids: list[int], first: int = 1) -> list[float]:
    """The surprisal of each token from `first` on, after all that stand before it."""
    scores = log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return [-scores[n - 1, ids[n]].item() for n in range(first, len(ids))]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_fixed_windows_are_full_and_the_remainder_is_left_out(
    model: nn.Module, documents: str
) -> None:
    ids = TOKENIZER("\n\n".join(TEXTS))["input_ids"]
    windows = [ids[n : n + 10] for n in range(0, len(ids) - 9, 10)]
    assert len(ids) % 10
    cut, result = measured(model, [documents], Form("fixed", 10))
    assert [span.ids.tolist() for span in cut.spans] == windows
    expected = mean([mean(nats(model, window)) for window in windows])
    assert result.loss.nll_per_token == pytest.approx(expected, abs=1e-6)
    assert result.loss.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert result.loss.tokens == 9 * len(windows)


@pytest.mark.parametrize("name", ["fixed", "sliding"])
@pytest.mark.parametrize("behind", [[], [258]])
def test_a_stream_has_once_what_the_tokenizer_puts_around_it(
    tmp_path: Path, name: Any, behind: list[int]
) -> None:
    around = byte_tokenizer()
    around.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    around.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if behind else "<s> $A", special_tokens=[("<s>", 257), ("</s>", 258)]
    )
    ids = [257, *TOKENIZER("cats")["input_ids"], *behind]
    model, config = tiny_routed(vocab_size=259), DataConfig(control_tokens=True)
    for n, written in enumerate(("cats", "<s>cats")):
        path = write(tmp_path / f"{n}.txt", written)
        cut = cut_text([str(path)], around, model, Form(name, len(ids)), config=config)
        assert [span.ids.tolist() for span in cut.spans] == [ids]


@pytest.mark.parametrize(("window", "stride"), [(12, 5), (12, 11), (7, 1), (100, 50)])
def test_a_sliding_window_scores_each_token_once_with_what_stands_before_it(
    model: nn.Module, documents: str, window: int, stride: int
) -> None:
    ids = TOKENIZER("\n\n".join(TEXTS))["input_ids"]
    found: dict[int, float] = {}
    for begin in range(0, len(ids), stride):
        row = ids[begin : begin + window]
        for place, loss in enumerate(nats(model, row), begin + 1):
            found.setdefault(place, loss)  # the first window that holds a token scores it
    assert sorted(found) == list(range(1, len(ids)))
    _, result = measured(model, [documents], Form("sliding", window, stride))
    assert result.loss.nll_per_token == pytest.approx(mean(list(found.values())), abs=1e-6)
    assert result.loss.tokens == len(ids) - 1
    assert (result.form.window, result.form.stride) == (window, stride)


def test_bits_a_byte_score_every_token_of_every_document_after_a_prefix(
    model: nn.Module, documents: str
) -> None:
    total = sum(sum(nats(model, [0, *TOKENIZER(text)["input_ids"]])) for text in TEXTS)
    count = sum(len(text.encode()) for text in TEXTS)
    _, result = measured(model, [documents], Form("bits"))
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / count, abs=1e-6)
    assert result.loss.tokens == count  # a token a byte
    assert result.to_dict()["bits_per_byte"] == result.bits_per_byte


def test_without_a_prefix_token_the_first_token_of_a_document_is_not_scored(
    model: nn.Module, documents: str
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    total = sum(sum(nats(model, TOKENIZER(text)["input_ids"])) for text in TEXTS)
    _, result = measured(model, [documents], Form("bits"), tokenizer)
    assert result.loss.nll_per_token * result.loss.tokens == pytest.approx(total, abs=1e-5)
    assert result.loss.tokens == sum(len(text.encode()) - 1 for text in TEXTS)


def test_a_document_longer_than_the_context_is_read_in_rows_that_leave_no_token_out(
    model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "All work and no play makes Jack a dull boy. " * 7
    path = tmp_path / "long.txt"
    path.write_text(text)
    context = model.config.max_position_embeddings
    ids = [0, *TOKENIZER(text)["input_ids"]]
    rows = [ids[n : n + context] for n in range(0, len(ids) - 1, context - 1)]
    assert len(rows) > 2
    with caplog.at_level(logging.WARNING, "skipgpt"):
        _, result = measured(model, [str(path)], Form("bits"))
    total = sum(sum(nats(model, row)) for row in rows)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / len(text), abs=1e-6)
    assert "1 of 1 documents are longer than 128 tokens" in caplog.text


def test_a_text_through_a_pipe_is_cut_like_its_file(model: nn.Module, tmp_path: Path) -> None:
    content = (SENTENCE * 800).encode()  # long enough for sections
    for name, parts in {"text": [content], "rows": [b'{"text": "a b c"}\n'] * 3}.items():
        file = write(tmp_path / (name + ".jsonl" * (name == "rows")), b"".join(parts))
        with piped(tmp_path / f"{name}.pipe", parts) as pipe:
            cuts = [
                cut_text([str(path)], TOKENIZER, model, Form("bits")).spans for path in (file, pipe)
            ]
        whole, through = ([span.ids.tolist() for span in spans] for spans in cuts)
        assert through == whole
        assert sum(ids[0] == 0 for ids in whole) == (3 if name == "rows" else 1)


def test_blocks_are_every_row_of_the_documents_as_one_stream(
    model: nn.Module, documents: str
) -> None:
    ids = [n for text in TEXTS for n in (0, *TOKENIZER(text)["input_ids"])]
    rows = [ids[n : n + 15] for n in range(0, len(ids), 15)]
    assert 1 < len(rows[-1]) < 15
    _, result = measured(model, [documents], Form("blocks", 15))
    losses = [loss for row in rows for loss in nats(model, row)]
    assert result.loss.nll_per_token == pytest.approx(mean(losses), abs=1e-6)
    assert result.loss.tokens == len(losses)


def test_a_window_longer_than_the_context_is_cut_to_it_and_said(
    model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("word " * 100)
    with caplog.at_level(logging.WARNING, "skipgpt"):
        cut, _ = measured(model, [str(path)], Form("fixed"))
    assert {len(span.ids) for span in cut.spans} == {128}
    assert "rows of 2048 tokens are longer than the model's context: cut to 128" in caplog.text


def test_max_tokens_reads_the_beginning_of_the_stream(model: nn.Module, documents: str) -> None:
    cut, _ = measured(model, [documents], Form("sliding", 8, 4), max_tokens=20)
    assert sum(len(span.ids) - span.first for span in cut.spans) == 19


def test_the_sparsity_is_that_of_all_rows_that_were_read(model: nn.Module, documents: str) -> None:
    cut, result = measured(model, [documents], Form("sliding", 12, 5))
    with record_routing(model) as trace, torch.no_grad():
        for span in cut.spans:
            model(span.ids[None])
    assert result.loss.sparsity["module"] == pytest.approx(trace.sparsity(), abs=1e-9)
    with execution(model, "dense"):
        assert set(measure_text(model, cut).loss.sparsity.values()) == {0.0}


@pytest.mark.parametrize("name", ["fixed", "sliding", "bits"])
def test_forms_agree_with_the_plain_computation_on_published_text(
    name: str, data_folder: Path, tmp_path: Path
) -> None:
    base, tokenizer = load_base(str(data_folder / "stories260K"))
    model = add_routers(base)
    text = (data_folder / "text/wikitext2-valid.txt").read_text()[:3000]
    path = tmp_path / "cut.txt"
    path.write_text(text)
    as_text = {"split_special_tokens": True}  # `<unk>` is written in it
    ids = tokenizer(text, **as_text)["input_ids"]
    if name == "bits":
        ids = [
            tokenizer.bos_token_id,
            *tokenizer(text, add_special_tokens=False, **as_text)["input_ids"],
        ]
    _, result = measured(model, [str(path)], Form(name, 200), tokenizer)
    if name == "fixed":
        losses = [nats(model, ids[n : n + 200]) for n in range(0, len(ids) - 199, 200)]
        expected = mean([mean(each) for each in losses])
    elif name == "sliding":
        found: dict[int, float] = {}
        for begin in range(0, len(ids), 100):
            for place, loss in enumerate(nats(model, ids[begin : begin + 200]), begin + 1):
                found.setdefault(place, loss)
        expected = mean(list(found.values()))
    else:
        losses = [nats(model, ids[n : n + 200]) for n in range(0, len(ids) - 1, 199)]
        total = math.fsum(loss for each in losses for loss in each)
        expected = total / (len(ids) - 1)
        bits = total / math.log(2) / len(text.encode())
        assert result.bits_per_byte == pytest.approx(bits, abs=1e-6)
    assert result.loss.nll_per_token == pytest.approx(expected, abs=1e-6)


def test_a_local_corpus_is_labelled_in_the_result(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text("A line of words .\n" * 30)
    _, result = measured(model, [str(path)], Form("fixed", 64), corpus="wikitext2")
    assert result.to_dict()["source"] == "wikitext2, local file: wiki.test.raw"
    assert "wikitext2, local file: wiki.test.raw" in str(result)


BAD_FORMS = {
    "an unknown form": ({"name": "rolling"}, "blocks, fixed, sliding or bits"),
    "a window of one": ({"name": "fixed", "window": 1}, "2 or more"),
    "a window below nothing": ({"name": "fixed", "window": -5}, "2 or more"),
    "a stride without sliding": ({"name": "fixed", "window": 8, "stride": 4}, "with sliding"),
    "a stride below nothing": ({"name": "sliding", "window": 8, "stride": -1}, "positive"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_form_that_cannot_be_is_refused(name: str) -> None:
    values, words = BAD_FORMS[name]
    with pytest.raises(ConfigError, match=words):
        Form(**values)


def test_a_stride_that_would_leave_tokens_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="a stride of 8 in windows of 8"):
        sliding_spans(torch.arange(20), 8, 8)


def test_a_text_of_one_token_is_refused_and_of_less_than_a_window_said(
    model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a")
    with pytest.raises(DataError, match="got 1 token; expected 2"):
        cut_text([str(path)], TOKENIZER, model, Form("sliding"))
    with pytest.raises(DataError, match="a smaller window"):
        cut_text([str(path)], TOKENIZER, model, Form("fixed", 16))


def test_corpora_have_forms_of_one_stream_and_all_of_bits_is_read(model: nn.Module) -> None:
    for form, options, words in (
        (Form("bits"), {"corpus": "ptb"}, "one stream"),
        (Form("blocks"), {"corpus": "ptb"}, "one stream"),
        (Form("fixed"), {"corpus": "c4"}, "wikitext2 or ptb"),
        (Form("bits"), {"max_tokens": 5}, "documents stay whole"),
        (Form("fixed"), {"max_tokens": -1}, "or more"),
    ):
        with pytest.raises(ConfigError, match=words):
            cut_text(["x"], TOKENIZER, model, form, **options)


def test_documents_are_cut_into_rows_that_share_a_token() -> None:
    assert document_spans(torch.tensor([5]), 4) == []
    assert [s.ids.tolist() for s in document_spans(torch.arange(5), 9)] == [[0, 1, 2, 3, 4]]


def test_empty_documents_are_passed_over(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ["", "a cat", "  ", "a mat"]))
    _, result = measured(model, [str(path)], Form("bits"))
    assert result.loss.tokens == len("a cat") + len("a mat")
