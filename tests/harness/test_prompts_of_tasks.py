"""Which tokens the harness gives a model as a prompt, and which ways to decode it refuses."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from lm_eval.api.instance import Instance
from tokenizers import processors

from skipgpt.errors import ConfigError
from skipgpt.evaluation.harness.model import RoutedLM
from tiny import byte_tokenizer, tiny_routed

BOS, EOS = 257, 258
PLAIN = byte_tokenizer()


def plain(text: str) -> list[int]:
    return list(PLAIN(text)["input_ids"])


def model_of(template: str, **options: Any) -> RoutedLM:
    """A model whose tokenizer puts `<s>` and `</s>` around a text as a template says."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return RoutedLM(tiny_routed(vocab_size=len(tokenizer)), tokenizer, batch_size=2, **options)


def decode(lm: RoutedLM, *prompts: str, **options: Any) -> list[str]:
    options = {"until": ["\n\n"], "max_gen_toks": 2, "do_sample": False} | options
    asked = [
        Instance("generate_until", {}, (prompt, options), n, ("task", n, 1))
        for n, prompt in enumerate(prompts)
    ]
    return lm.generate_until(asked)


@pytest.mark.parametrize(
    ("template", "adds", "before"),
    [
        ("$A", None, []),
        ("<s> $A", None, [BOS]),
        ("$A </s>", None, []),
        ("<s> $A </s>", None, [BOS]),
        ("<s> $A </s>", True, [BOS]),
        ("<s> $A </s>", False, []),
        ("$A </s>", True, [BOS]),
    ],
)
def test_a_prompt_begins_as_a_text_does_and_does_not_end(
    template: str, adds: bool | None, before: list[int]
) -> None:
    lm = model_of(template, add_bos_token=adds)
    assert lm.tok_encode("ab") == [*before, *plain("ab")]
    assert lm.tok_encode("ab", add_special_tokens=False) == plain("ab")
    assert lm._encode_pair("ab", " c") == ([*before, *plain("ab")], plain(" c"))
    assert lm._encode_pair("<s>ab", " c") == ([BOS, *plain("ab")], plain(" c"))
    with mock.patch.object(lm.model, "generate", wraps=lm.model.generate) as generate:
        decode(lm, "ab", "<s>abc", "")
    given = [
        ids[mask.bool()].tolist()
        for call in generate.call_args_list
        for ids, mask in zip(call.kwargs["input_ids"], call.kwargs["attention_mask"], strict=True)
    ]
    # The longest first, and BOS for the text without any token.
    assert given == [[BOS, *plain("abc")], [*before, *plain("ab")], [BOS]]


def test_prompts_of_a_batch_are_padded_left_and_lose_their_beginning() -> None:
    lm = model_of("<s> $A </s>")
    pad = lm.tokenizer.pad_token_id
    ids, mask = lm.tok_batch_encode(["abcd", "a"], left_truncate_len=3)
    assert ids.tolist() == [plain("bcd"), [pad, BOS, *plain("a")]]
    assert mask.tolist() == [[1, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize("execution", ["auto", "dense"])
@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_a_task_that_wants_several_rows_per_prompt_is_refused(name: str, execution: str) -> None:
    lm = model_of("<s> $A", execution=execution)
    with pytest.raises(ConfigError, match=f"got {name}: 3; expected 1: .* leave {name} out"):
        decode(lm, "ab", **{name: 3})
    assert decode(lm, "ab", **{name: 1}) == decode(lm, "ab")
