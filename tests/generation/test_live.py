"""What ran for each token is told while a text is generated."""

import pytest
import torch

from skipgpt.data.detokenize import Pieces, token_texts
from skipgpt.errors import ConfigError
from skipgpt.generation import generate
from skipgpt.generation.live import TokenRun
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.routing.decision import Forced, Site
from tiny import byte_tokenizer, tiny_routed

TOKENIZER = byte_tokenizer()


def model(**changes):
    return tiny_routed(initializer_range=0.2, **changes)


def told(routed, prompt: str, **how):
    tokens: list[TokenRun] = []
    return generate(routed, TOKENIZER, prompt, on_token=tokens.append, **how), tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_telling_changes_neither_the_text_nor_the_numbers(temperature: float) -> None:
    routed = model()
    for seed in range(4):  # random bytes, most of them part of no character
        torch.manual_seed(seed)
        plain = generate(routed, TOKENIZER, "naïve 🙂", temperature=temperature)
        torch.manual_seed(seed)
        result, tokens = told(routed, "naïve 🙂", temperature=temperature)
        assert result == plain
        assert "".join(token.text for token in tokens) == "naïve 🙂" + plain.text
        assert [token.prompt for token in tokens] == [True] * 11 + [False] * plain.new_tokens


def test_every_token_is_told_with_what_ran_for_it() -> None:
    routed = model()
    result, tokens = told(routed, "The cat", max_new_tokens=9)
    ids = TOKENIZER("The cat", return_tensors="pt").input_ids
    ids = routed.generate(ids, do_sample=False, max_new_tokens=9, pad_token_id=0)
    assert ids.shape[1] == len(tokens) == 16
    with record_routing(routed) as trace, torch.no_grad():
        routed(ids[:, :-1])
    attn, mlp = (
        torch.stack(trace.steps[0].keeps(kind))[:, 0].T.tolist() for kind in ("attn", "mlp")
    )
    assert [list(token.attn) for token in tokens[:-1]] == attn
    assert [list(token.mlp) for token in tokens[:-1]] == mlp
    shares = [token.compute for token in tokens[:-1]]
    assert 1 - sum(shares) / len(shares) == pytest.approx(result.sparsity, abs=1e-12)
    assert len(set(shares)) > 1


def test_the_last_token_is_told_without_compute_as_nothing_read_it() -> None:
    _, tokens = told(model(), "The cat", max_new_tokens=3)
    assert tokens[-1].compute is None
    assert tokens[-1].to_dict()["attn"] == ()
    assert all(token.compute is not None for token in tokens[:-1])


def test_a_token_is_told_before_the_one_after_next_is_made() -> None:
    routed, read = model(), []
    handle = routed.register_forward_hook(lambda *_: read.append(len(tokens)))
    tokens: list[TokenRun] = []
    generate(routed, TOKENIZER, "The cat", max_new_tokens=4, on_token=tokens.append)
    handle.remove()
    assert read == [0, 7, 8, 9]


def test_forced_routes_are_what_is_told() -> None:
    with use_rule(routed := model(), Forced.without([Site(1, "mlp")])):
        _, tokens = told(routed, "ab", max_new_tokens=2)
    assert tokens[0] == TokenRun("a", True, attn=(True,) * 3, mlp=(True, False, True))
    assert tokens[0].to_dict()["compute"] == pytest.approx(5 / 6)


def test_a_dense_run_tells_tokens_without_compute() -> None:
    with execution(routed := model(), "dense"):
        result, tokens = told(routed, "ab", max_new_tokens=2)
    assert "".join(token.text for token in tokens) == "ab" + result.text
    assert {token.compute for token in tokens} == {None}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_the_prompt_stays_as_it_was_written_where_the_tokenizer_changes_it(fast: bool) -> None:
    from tokenizers import normalizers

    lower = byte_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower.__class__ = type("Tokenizer", (type(lower),), {"is_fast": fast})
    tokens: list[TokenRun] = []
    generate(model(), lower, "The CAT", max_new_tokens=1, on_token=tokens.append)
    assert "".join(token.text for token in tokens if token.prompt) == "The CAT"


def test_a_prompt_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty prompt"):
        told(model(), "")


def test_pieces_come_one_by_one_as_they_come_at_once() -> None:
    ids = TOKENIZER("é🙂 und so weiter", add_special_tokens=False)["input_ids"]
    reading = Pieces(TOKENIZER)
    assert [reading.add(token) for token in ids] == token_texts(ids, TOKENIZER)
    assert reading.rest() == ""
    reading.add(ids[0])
    assert reading.rest() == "\N{REPLACEMENT CHARACTER}"


def test_a_continuation_keeps_the_space_before_its_first_word(data_folder) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data_folder / "stories260K")
    before, after = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("a dog", "sat"))
    reading = Pieces(tokenizer, before)
    assert "".join(map(reading.add, after)) + reading.rest() == " sat"
