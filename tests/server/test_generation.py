import threading

import pytest
import torch

from runs import shared_checkpoint
from skipgpt.checkpoint.loading import load
from skipgpt.errors import ConfigError
from skipgpt.generation import generate
from skipgpt.generation.stop_strings import NewText
from skipgpt.model.loading.generation_settings import Ends
from skipgpt.model.sparsity import at_sparsity
from skipgpt.serving.generation import Completion, GenerationRequest, TextChunk, run_request
from skipgpt.serving.replies import Reply
from skipgpt.serving.tokens import Likely, TokenLogprob, Tokens
from tiny import byte_tokenizer

PROMPT = "Story 3 of the cats"


@pytest.fixture(scope="module")
def loaded():
    return load(shared_checkpoint(), merge=True)


def _run(loaded, **wanted) -> tuple[str, list[TextChunk], Completion]:
    model, tokenizer = loaded
    pieces: list[TextChunk] = []
    ids = tuple(tokenizer(PROMPT)["input_ids"])
    done = run_request(
        model, tokenizer, GenerationRequest(ids, **{"max_tokens": 20, **wanted}), pieces.append
    )
    return "".join(piece.text for piece in pieces), pieces, done


@pytest.mark.parametrize("sparsity", [None, 0.0, 0.5])
def test_greedy_text_and_sparsity_are_those_of_generate(loaded, sparsity: float | None) -> None:
    model, tokenizer = loaded
    text, _, done = _run(loaded, sparsity=sparsity)
    if sparsity is None:
        alone = generate(model, tokenizer, PROMPT, max_new_tokens=20)
    else:
        with at_sparsity(model, sparsity):
            alone = generate(model, tokenizer, PROMPT, max_new_tokens=20)
    assert text == alone.text
    assert done.new_tokens == alone.new_tokens
    assert done.skipped / done.decisions == pytest.approx(alone.sparsity)
    assert done.reason == ("length" if alone.new_tokens == 20 else "stop")


@pytest.mark.parametrize("budget", ["modules", "flops"])
def test_a_request_names_what_its_sparsity_counts(loaded, budget: str) -> None:
    model, tokenizer = loaded
    text, _, done = _run(loaded, sparsity=0.3, budget=budget)
    with at_sparsity(model, 0.3, budget=budget):
        alone = generate(model, tokenizer, PROMPT, max_new_tokens=20)
    assert text == alone.text
    assert done.skipped / done.decisions == pytest.approx(alone.sparsity)


def test_a_stop_string_ends_the_text_before_it_and_the_work_after_it(loaded) -> None:
    whole, _, _ = _run(loaded)
    stop = whole[4:6]
    text, _, done = _run(loaded, stops=(stop,))
    assert text == whole[: whole.index(stop)]
    assert done.reason == "stop"
    assert done.new_tokens < 20


def test_probabilities_are_those_of_a_plain_forward(loaded) -> None:
    model, tokenizer = loaded
    _, pieces, done = _run(loaded, logprobs=3)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert len(tokens) == done.new_tokens
    ids = tokenizer(PROMPT)["input_ids"]
    for token in tokens[:5]:
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(logs.max().item(), abs=1e-4)
        assert [each.logprob for each in token.top] == pytest.approx(
            logs.topk(3).values.tolist(), abs=1e-4
        )
        ids = [*ids, int(logs.argmax())]
    assert [token.start for token in tokens] == sorted(token.start for token in tokens)


def test_sampling_follows_its_seed(loaded) -> None:
    first, again, other = (_run(loaded, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_cancelled_job_stops_at_its_next_token(loaded) -> None:
    model, tokenizer = loaded
    cancelled = threading.Event()
    job = GenerationRequest(tuple(tokenizer(PROMPT)["input_ids"]), max_tokens=20)
    done = run_request(model, tokenizer, job, lambda _: cancelled.set(), cancelled)
    assert done.new_tokens < 5


def test_a_sparsity_out_of_reach_is_refused(loaded) -> None:
    with pytest.raises(ConfigError, match="setting the sparsity"):
        _run(loaded, sparsity=0.95)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_texts_and_bytes_of_tokens_join_to_the_text(loaded, temperature: float) -> None:
    for seed in range(3):  # random bytes, most of them part of no letter
        text, pieces, done = _run(loaded, logprobs=2, temperature=temperature, seed=seed)
        tokens = [token for piece in pieces for token in piece.tokens]
        assert len(tokens) == done.new_tokens
        if done.reason == "length":
            assert "".join(token.text for token in tokens) == text
        assert b"".join(token.bytes for token in tokens).decode() == text


def test_a_letter_of_several_tokens_has_the_bytes_of_each() -> None:
    tokenizer = byte_tokenizer()
    tokens = Tokens(tokenizer, Ends((0,)))
    text = NewText(tokenizer, (), Ends((0,)))
    ids = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    for token in [*ids, 0]:
        start = text.length
        text.add(token)
        tokens.add(token, text.piece, start, -1.0, [(ids[1], -1.0), (ids[2], -2.0), (0, -3.0)])
    found = tokens.up_to(9)
    assert [token.bytes for token in found] == [b"a", b"\xf0", b"\x9f", b"\x99", b"\x82", b""]
    assert [token.text for token in found] == ["a", "", "", "", "🙂", "<|endoftext|>"]
    assert [token.start for token in found] == [0, 1, 1, 1, 1, 2]
    top = found[0].top
    assert [each.text for each in top] == [r"bytes:\xf0", r"bytes:\x9f", "<|endoftext|>"]
    assert [each.bytes for each in top] == [b"\xf0", b"\x9f", b""]


def test_a_letter_that_is_never_complete_is_the_text_of_its_last_token() -> None:
    tokenizer = byte_tokenizer()
    tokens, text = Tokens(tokenizer, Ends((0,))), NewText(tokenizer, (), Ends((0,)))
    for token in tokenizer("🙂", add_special_tokens=False)["input_ids"][:2]:
        text.add(token)
        tokens.add(token, text.piece, 0, -1.0, ())
    assert text.rest() == "\N{REPLACEMENT CHARACTER}"
    tokens.complete(text.piece)
    assert [token.bytes for token in tokens.up_to(9)] == [b"", "\N{REPLACEMENT CHARACTER}".encode()]


def test_alternatives_that_read_alike_are_all_told() -> None:
    likely = tuple(Likely(n, "\N{REPLACEMENT CHARACTER}", None, -float(n)) for n in (5, 6, 7))
    chosen = TokenLogprob(5, "", b"", -5.0, 0, likely)
    reply = Reply("m", False, 3, logprobs=True).chunk(TextChunk("", (chosen,)))
    (top,) = reply["choices"][0]["logprobs"]["top_logprobs"]
    assert top == {"\N{REPLACEMENT CHARACTER}": -5.0, "token_id:6": -6.0, "token_id:7": -7.0}
