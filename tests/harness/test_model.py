"""What the harness may ask of a routed model: scores, whole texts, and decoded ones."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from tokenizers import processors
from torch.nn.functional import log_softmax

from runs import make_checkpoint, shared_checkpoint
from skipgpt.evaluation.harness.model import RoutedLM
from skipgpt.model.state import record_routing, routing_state
from skipgpt.routing.decision import Threshold
from tiny import byte_tokenizer, tiny_routed

TOKENIZER = byte_tokenizer()


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, n, ("task", n, 1)) for n, each in enumerate(arguments)]


@pytest.fixture
def lm() -> RoutedLM:
    return RoutedLM(tiny_routed(initializer_range=0.2), byte_tokenizer(), batch_size=2)


def test_the_harness_finds_it_by_name_and_makes_it_of_arguments() -> None:
    text = f"pretrained={shared_checkpoint()},sparsity=0.5,padding_side=left"
    made = get_model("skipgpt").create_from_arg_string(text, {"batch_size": "auto", "device": None})
    assert type(made) is RoutedLM
    assert made.scorer.batch.automatic
    assert made.scorer.side == "left"
    curve = routing_state(made.model).curves.curve()
    assert routing_state(made.model).rule == Threshold(curve.threshold(0.5))


def test_a_text_without_context_is_scored_after_the_prefix_token(lm: RoutedLM) -> None:
    (found,) = lm.loglikelihood(requests("loglikelihood", ("", "cat")))
    ids = [0, *TOKENIZER("cat")["input_ids"]]
    with torch.no_grad():
        scores = log_softmax(lm.model(torch.tensor([ids])).logits[0], -1)
    expected = sum(scores[n - 1, ids[n]].item() for n in (1, 2, 3))
    assert found[0] == pytest.approx(expected, abs=1e-5)


def test_a_whole_text_is_predicted_once_in_windows_of_the_context(lm: RoutedLM) -> None:
    texts = ["short", "a text that is longer than the window " * 6]
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", *((t,) for t in texts)))
    for text, total in zip(texts, found, strict=True):
        ids = [0, *TOKENIZER(text)["input_ids"]]
        expected = 0.0
        for done in range(0, len(ids) - 1, 128):
            end = min(done + 129, len(ids))
            row = torch.tensor([ids[max(0, end - 129) : end]])  # the last one has its full context
            with torch.no_grad():
                scores = log_softmax(lm.model(row[:, :-1]).logits[0].double(), -1)
            each = scores.gather(1, row[0, 1:, None])[:, 0]
            expected += each[-(end - done - 1) :].sum().item()
        assert total == pytest.approx(expected, abs=1e-3)
    assert 0 < lm.sparsity_over()["module"] < 1


def test_decoded_texts_are_those_of_single_prompts_and_count_what_they_ran(lm: RoutedLM) -> None:
    prompts = ["The cat sat on", "One", "A longer prompt than all the others", "Two words"]
    options = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    asked = requests("generate_until", *((prompt, options) for prompt in prompts))
    found = lm.generate_until(asked)
    kept = tokens = 0
    for prompt, text in zip(prompts, found, strict=True):
        ids = TOKENIZER(prompt, return_tensors="pt")
        with record_routing(lm.model) as trace, torch.no_grad():
            out = lm.model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert TOKENIZER.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True) == text
        counts, ran = trace.counts().kept(), trace.counts().tokens
        kept, tokens = kept + sum(counts.values()), tokens + ran
    modules = 2 * lm.model.config.num_hidden_layers
    assert lm.sparsity_over(asked)["module"] == pytest.approx(1 - kept / tokens / modules)


def test_a_row_that_ends_early_is_not_counted_while_the_others_go_on() -> None:
    model = tiny_routed(initializer_range=0.2)
    prompts = ["The cat sat on", "One cat"]
    options = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    with torch.no_grad():
        out = model.generate(**TOKENIZER(prompts[1], return_tensors="pt"), max_new_tokens=3)
    model.generation_config.eos_token_id = out[0, -1].item()
    asked = requests("generate_until", *((prompt, options) for prompt in prompts))
    counted = []
    for rows in (1, 2):
        lm = RoutedLM(model, byte_tokenizer(), batch_size=rows)
        lm.generate_until(asked)
        counted.append({key: note["ran"] for key, note in lm.notes.items()})
    assert counted[0] == counted[1]
    assert sorted(ran[0] for ran in counted[0].values()) == [len("One cat") + 2, 21]


def greedy_text(model: Any, prompt: str, steps: int) -> str:
    """Text of a loop of argmax over plain forwards."""
    ids = TOKENIZER(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        for _ in range(steps):
            best = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, best[None, None]], 1)
    return str(TOKENIZER.decode(ids[0, -steps:], skip_special_tokens=True))


@pytest.mark.parametrize("eos", [0, None], ids=["with EOS", "without"])
def test_each_row_ends_at_its_own_stop_string_and_counts_no_token_after_it(eos: Any) -> None:
    model, prompts = tiny_routed(initializer_range=0.2), ["The cat sat on", "One cat", "Two words"]
    model.generation_config.eos_token_id = eos
    wholes = [greedy_text(model, prompt, 8) for prompt in prompts]
    until = [wholes[0][3], wholes[1][5]]
    options = {"until": until, "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", *((prompt, options) for prompt in prompts))
    right = [re.split("|".join(map(re.escape, until)), whole)[0] for whole in wholes]
    counted = []
    for rows in (1, 3):
        lm = RoutedLM(model, byte_tokenizer(), batch_size=rows)
        assert lm.generate_until(asked) == right
        counted.append({key: note["ran"] for key, note in lm.notes.items()})
    assert counted[0] == counted[1]
    read = [len(p) + min(len(text), 7) for p, text in zip(prompts, right, strict=True)]
    assert sorted(ran[0] for ran in counted[0].values()) == sorted(read)
    assert len({*map(len, right)}) > 1


def test_results_of_the_harness_carry_the_measured_sparsity(lm: RoutedLM) -> None:
    asked = requests("loglikelihood", ("a cat", " sat"), ("a dog", " ran away"))
    lm.loglikelihood(asked)
    info = lm.get_model_info()
    assert info["sparsity"] == lm.sparsity_over(asked)
    assert list(info["sparsity"]) == ["module", "attn", "mlp", "params", "flops"]
    assert info["cut_off_requests"] == 0
    assert math.isfinite(info["sparsity"]["flops"])


def test_lora_that_is_not_merged_scores_alike(base_folder: Any, tmp_path: Any) -> None:
    model, _ = make_checkpoint(base_folder, tmp_path / "c", lora=True)
    asked = requests("loglikelihood", ("a cat", " sat"), ("a longer dog", " ran"))
    wrapped = RoutedLM(model, byte_tokenizer()).loglikelihood(asked)
    merged = RoutedLM(str(tmp_path / "c")).loglikelihood(asked)
    assert [w[0] for w in wrapped] == pytest.approx([m[0] for m in merged], abs=1e-4)


def begun_by(*tokens: str) -> Any:
    """The byte tokenizer as of a model that wants these tokens before every text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    tokenizer.bos_token = tokens[0]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(tokens)} $A", special_tokens=list(zip(tokens, ids, strict=True))
    )
    return tokenizer


@pytest.mark.parametrize("tokens", [("<s>",), ("[gMASK]", "<sop>")])
def test_what_stands_before_a_text_stands_there_once_and_is_not_scored(
    tokens: tuple[str, ...],
) -> None:
    tokenizer = begun_by(*tokens)
    model = tiny_routed(initializer_range=0.2, vocab_size=len(tokenizer))
    lm = RoutedLM(model, tokenizer, batch_size=2)
    ids = tokenizer("cats sat")["input_ids"]
    with torch.no_grad():
        scores = log_softmax(model(torch.tensor([ids])).logits[0], -1)
    places = range(len(tokens), len(ids))
    expected = pytest.approx(sum(scores[n - 1, ids[n]].item() for n in places), abs=1e-4)
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("cats sat",))) == [expected]
    assert lm.loglikelihood(requests("loglikelihood", ("", "cats sat")))[0][0] == expected
    templated = "".join(tokens) + "cats sat"
    assert lm.tok_encode(templated) == lm.tok_encode("cats sat") == ids
    assert lm.tok_batch_encode([templated])[0].tolist() == [ids]

    lm = RoutedLM(model, tokenizer, batch_size=2, max_length=5)
    (total,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("cats sat",)))
    assert lm.cut_off() == 0
    wanted, done = 0.0, len(tokens)
    while done < len(ids):
        end = min(max(done, 1) + 5, len(ids)) if done > len(tokens) else 6
        row = ids[max(0, end - 6) : end]
        with torch.no_grad():
            scores = log_softmax(model(torch.tensor([row[:-1]])).logits[0], -1)
        wanted += sum(scores[n - 1 - end + len(row), ids[n]].item() for n in range(done, end))
        done = end
    assert total == pytest.approx(wanted, abs=1e-4)


def test_a_prefix_of_the_users_own_is_no_sign_of_a_template() -> None:
    tokenizer = begun_by("<s>")
    model = tiny_routed(initializer_range=0.2, vocab_size=len(tokenizer))
    line = tokenizer.convert_tokens_to_ids("Ċ")
    lm = RoutedLM(model, tokenizer, batch_size=2, prefix_token_id=line)
    assert lm.tok_batch_encode(["\nQ"])[0].tolist() == [tokenizer("\nQ")["input_ids"]]
