"""What a model cannot read is refused in one line, under rotary and learned positions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from runs import tiny_config, write_documents
from skipgpt.benchmark.bench import bench
from skipgpt.benchmark.grid import Grid
from skipgpt.benchmark.subject import Subject
from skipgpt.config import DataConfig
from skipgpt.errors import ConfigError, DataError
from skipgpt.evaluation.calibrate import calibrate
from skipgpt.evaluation.harness.model import RoutedLM
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.evaluation.protocols import Form, cut_text
from skipgpt.generation import generate
from skipgpt.model.base import load_base
from skipgpt.model.loading.limits import check_ids, context_of
from skipgpt.report.charts.routing_map import routing_map
from skipgpt.training.run import train
from tiny import byte_tokenizer, tiny_base, tiny_routed

CONTEXT = 128
ROTARY_AND_LEARNED = pytest.mark.parametrize("family", ["llama", "gpt2"])


def special() -> Any:
    """A tokenizer whose token <|new|> has no row in the embedding of a tiny model."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    return tokenizer


@ROTARY_AND_LEARNED
@pytest.mark.parametrize(
    ("prompt", "new", "todo"),
    [
        (200, 4, "shorten the prompt to at most 124 tokens$"),
        (100, 40, "shorten the prompt to at most 88 tokens, or ask for at most 28 new tokens$"),
        (100, 400, "ask for at most 28 new tokens$"),
    ],
)
def test_a_prompt_and_what_follows_fit_into_the_context(
    family: str, prompt: int, new: int, todo: str
) -> None:
    model = tiny_routed(family)
    said = f"a prompt of {prompt} tokens and {new} new tokens; expected at most 128 tokens .*{todo}"
    with pytest.raises(ConfigError, match=said):
        generate(model, byte_tokenizer(), "x" * prompt, max_new_tokens=new)


@ROTARY_AND_LEARNED
def test_what_just_fits_is_generated(family: str) -> None:
    model, tokenizer = tiny_routed(family), byte_tokenizer()
    tokenizer.eos_token, model.generation_config.eos_token_id = None, None
    assert generate(model, tokenizer, "x" * 100, max_new_tokens=28).new_tokens == 28


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "default"}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "linear", "factor": 2.0}, 256),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}, 128),
        ({"full_attention": {"rope_type": "linear", "factor": 8.0}}, 128),
    ],
)
def test_scaled_positions_stretch_the_context(rope: dict[str, Any], context: int) -> None:
    config = SimpleNamespace(max_position_embeddings=CONTEXT, rope_parameters=rope)
    config.get_text_config = lambda: config
    assert context_of(SimpleNamespace(config=config)) == context


@ROTARY_AND_LEARNED
@pytest.mark.parametrize(
    ("phase", "tokens"), [("prefill", 129), ("decode", 120), ("lora_step", 129)]
)
def test_nothing_is_timed_beyond_the_context(family: str, phase: Any, tokens: int) -> None:
    ids = torch.zeros(4096, dtype=torch.long)
    subject = Subject("tiny", tiny_base(family), tiny_routed(family), False, ids)
    grid = Grid((phase,), prompt_tokens=(8, tokens), decode_tokens=16, sparsities=(0.25,))
    with pytest.raises(ConfigError, match=f"timing: got a prompt of {tokens} tokens") as told:
        bench(subject, grid)
    fits = CONTEXT - (16 if phase == "decode" else 0)
    assert told.value.todo == f"give --prompt-tokens {fits} (prompt_tokens=) or fewer"


@ROTARY_AND_LEARNED
def test_the_harness_may_not_ask_for_more_than_the_context(family: str) -> None:
    lm = RoutedLM(tiny_routed(family), byte_tokenizer(), batch_size=1)
    options = {"until": ["\n"], "max_gen_toks": CONTEXT, "do_sample": False}
    asked = [Instance("generate_until", {}, ("x", options), 0, ("task", 0, 1))]
    with pytest.raises(ConfigError, match="a prompt of 1 tokens and 128 new"):
        lm.generate_until(asked)


def test_the_harness_counts_prompts_whose_beginning_it_cuts_off() -> None:
    lm = RoutedLM(tiny_routed(), byte_tokenizer(), batch_size=1)
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [
        Instance("generate_until", {}, ("x" * length, options), n, ("task", n, 1))
        for n, length in enumerate((120, 121))
    ]
    lm.generate_until(asked)
    assert [lm.cut_off([each]) for each in asked] == [0, 1]


def test_rows_for_training_fit_into_the_context(base_folder: Path, tmp_path: Path) -> None:
    write_documents(tmp_path)
    config = tiny_config(data__block_size=CONTEXT + 1)
    with pytest.raises(ConfigError, match=r"rows of 129 tokens.*give at most --block-size=128"):
        train(str(base_folder), [str(tmp_path / "stories.jsonl")], tmp_path / "out", config)


@ROTARY_AND_LEARNED
@pytest.mark.parametrize(
    ("measure", "doing"), [(perplexity, "measuring perplexity"), (calibrate, "calibrating")]
)
def test_blocks_of_ones_own_are_refused_before_any_forward(
    measure: Any, doing: str, family: str
) -> None:
    model = tiny_routed(family)
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward"))
    fits = torch.zeros(2, CONTEXT, dtype=torch.long)
    long = torch.zeros(2, CONTEXT + 1, dtype=torch.long)
    said = f"{doing}: got rows of 129 tokens; expected at most 128.*or shorter blocks$"
    with pytest.raises(ConfigError, match=said):
        measure(model, long)
    for token in (257, -1):
        fits[1, 5] = token
        with pytest.raises(DataError, match=f"{doing}: got token {token}; expected tokens from 0"):
            measure(model, fits)


@ROTARY_AND_LEARNED
def test_rows_of_several_lengths_are_measured_up_to_the_context(family: str) -> None:
    model, row = tiny_routed(family), torch.arange(CONTEXT)
    assert perplexity(model, [row[:9], row]).tokens == 8 + 127
    with pytest.raises(ConfigError, match="rows of 256 tokens"):
        perplexity(model, [row[:9], row.repeat(2)])


def test_a_token_that_the_tokenizer_does_not_know_has_no_name() -> None:
    with pytest.raises(DataError, match=r"got token 99999; expected tokens from 0 to 256"):
        check_ids("reading", tiny_base(), byte_tokenizer(), torch.tensor([99999]))


def test_a_token_without_an_embedding_is_named_by_every_command(
    base_folder: Path, tmp_path: Path
) -> None:
    model, tokenizer = tiny_routed(), special()
    said = r"token 257 \('<\|new\|>'\); expected tokens from 0 to 256"
    with pytest.raises(DataError, match=f"generating: got {said}"):
        generate(model, tokenizer, "a <|new|>")
    with pytest.raises(DataError, match=f"mapping a text: got {said}"):
        routing_map(model, tokenizer, "a <|new|>")
    text = tmp_path / "text.txt"
    text.write_text("a <|new|> b\n" * 40)
    for form in (Form("blocks"), Form("fixed", 16), Form("sliding", 16), Form("bits")):
        with pytest.raises(DataError, match=f"reading the text: got {said}"):
            cut_text([str(text)], tokenizer, model, form, config=DataConfig(block_size=16))
    tokenizer.save_pretrained(base_folder)
    rows = [
        {"text": f"Story {n} <|new|> of the {n * n} cats that slept on a mat"} for n in range(40)
    ]
    stories = tmp_path / "stories.jsonl"
    stories.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=f"reading the text: got {said}"):
        train(str(base_folder), [str(stories)], tmp_path / "out", tiny_config())
    lm = RoutedLM(load_routed(base_folder), tokenizer, batch_size=1)
    with pytest.raises(DataError, match="scoring a choice: got token 257"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a", " <|new|>"), 0, ("task", 0, 1))])
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, ("<|new|>", options), 0, ("task", 0, 1))]
    with pytest.raises(DataError, match=f"decoding a prompt: got {said}"):
        lm.generate_until(asked)


@pytest.mark.parametrize("shape", [(1, 24), (24,), (2, 12)])
def test_a_control_token_without_an_embedding_is_named_where_it_stands_as_text(
    shape: tuple[int, ...],
) -> None:
    model, tokenizer, text = tiny_base("llama"), byte_tokenizer(), "a <|new|> b and the rest"
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    ids = torch.tensor(byte_tokenizer()(text)["input_ids"]).view(shape)
    assert ids.max() < 257  # text, not the one token
    said = r"the control token '<\|new\|>', token 257; expected tokens from 0 to 256"
    with pytest.raises(DataError, match=said):
        check_ids("reading", model, tokenizer, ids)
    check_ids("reading", model, byte_tokenizer(), ids)
    check_ids("reading", model, tokenizer, torch.tensor(byte_tokenizer()("a < b")["input_ids"]))


def load_routed(folder: Path) -> Any:
    from skipgpt.model.surgery import add_routers

    return add_routers(load_base(str(folder))[0]).eval()


@pytest.mark.parametrize("temperature", [-0.5, math.nan, math.inf])
def test_a_temperature_is_not_negative(temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"temperature {temperature}; expected 0 or more"):
        generate(tiny_routed(), byte_tokenizer(), "a", temperature=temperature)
