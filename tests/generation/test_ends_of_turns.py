"""A text ends where a turn does, wherever that is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from transformers import GenerationConfig

from ends_of_turns import NEW, PROMPT, argmaxes, benchmarked, routed, served
from runs import make_checkpoint, write_documents
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig
from skipgpt.data.encoding import have_control_tokens
from skipgpt.export import export_merged, export_static
from skipgpt.generation import generate
from skipgpt.model.loading.generation_settings import Ends, ends_of
from skipgpt.model.surgery import routers
from skipgpt.routing.decision import Site
from skipgpt.routing.router import set_constant
from skipgpt.serving.vllm.requests import add_ends
from tiny import byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}"


def chat_tokenizer(template: str | None = None) -> Any:
    """Tokens 257 and 258 begin and end a turn."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 258
    tokenizer.chat_template = template
    return tokenizer


@contextmanager
def third_token(model: nn.Module, token: int) -> Iterator[None]:
    """The model says this token in the third forward of each text."""
    calls = 0

    def say(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal calls
        calls = 1 if kwargs["input_ids"].shape[1] > 1 else calls + 1
        if calls == 3:
            output.logits[:, -1, token] = 1e4

    with model.register_forward_hook(say, with_kwargs=True):
        yield


def in_tokenizer(model: Any, tokenizer: Any) -> None:
    tokenizer.eos_token = "<|im_end|>"


def in_template(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML


def in_generation_config(model: Any, tokenizer: Any) -> None:
    model.generation_config = GenerationConfig(eos_token_id=[0, 258])


def in_stop_strings(model: Any, tokenizer: Any) -> None:
    model.generation_config = GenerationConfig(stop_strings="<|im_end|>")


@pytest.mark.parametrize(
    "known", [in_tokenizer, in_template, in_generation_config, in_stop_strings]
)
def test_the_end_of_a_turn_is_known_wherever_it_is_said(
    known: Callable[[Any, Any], None],
) -> None:
    model, tokenizer = routed(), chat_tokenizer()
    right, _ = argmaxes(model, tokenizer, 2)
    with third_token(model, 258):
        beyond = generate(model, tokenizer, PROMPT, max_new_tokens=NEW)
        assert beyond.new_tokens == NEW  # nobody said that it ends
        known(model, tokenizer)
        found = generate(model, tokenizer, PROMPT, max_new_tokens=NEW)
        assert (found.text, found.new_tokens) == (right, 3)
        text, done, _ = served(model, tokenizer)
        assert (text, done.reason, done.new_tokens) == (right, "stop", 3)
        assert benchmarked(model, tokenizer) == right


def test_a_stop_string_that_is_a_special_token_ends_a_request() -> None:
    model, tokenizer = routed(), chat_tokenizer()
    right, _ = argmaxes(model, tokenizer, 2)
    with third_token(model, 258):
        text, done, _ = served(model, tokenizer, stops=("<|im_end|>",))
    assert (text, done.reason, done.new_tokens) == (right, "stop", 3)


def test_what_ends_a_turn_is_no_text_where_its_token_is_an_ordinary_one() -> None:
    from tokenizers import AddedToken

    model, tokenizer = routed(), byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<start>"), AddedToken("<end>")])
    right, _ = argmaxes(model, tokenizer, 2)
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<end>")
    with third_token(model, 258):
        assert generate(model, tokenizer, PROMPT, max_new_tokens=NEW).text == right
        assert served(model, tokenizer)[0] == benchmarked(model, tokenizer) == right


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, ()),
        (CHATML, (258,)),
        # What begins the next turn ends this one where nothing else does.
        ("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}", (257,)),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", ()),
        ("{{ raise_exception('no') }}", ()),
        (NEEDS_SYSTEM + CHATML, (258,)),
        (CHATML.replace("<|im_end|>", "</answer><|im_end|>"), (258,)),
        (CHATML.replace("<|im_end|>", " {{ m['role'] }} <|im_end|><|im_start|>"), (258,)),
        # What begins the next turn does not where something else ends it.
        (CHATML.replace("<|im_end|>", "{% if loop.last %}<|im_end|>{% endif %}"), (258,)),
        # A reply may end otherwise within a chat than at its end.
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
            "{% if loop.last %}!<|im_end|>{% else %}!<|im_start|>\n{% endif %}{% endfor %}",
            (257, 258),
        ),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(
    template: str | None, expected: tuple[int, ...]
) -> None:
    assert ends_of(routed(), chat_tokenizer(template)) == Ends((0, *expected))


def test_a_template_without_an_end_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model, silent = routed(), chat_tokenizer("{{ messages[-1]['content'] }} over")
    for tokenizer in (silent, silent, chat_tokenizer(CHATML), chat_tokenizer()):
        ends_of(model, tokenizer)
    (said,) = caplog.messages
    assert "the chat template puts no token after a reply" in said
    assert said.endswith("It begins: {{ messages[-1]['content'] }} over")


def test_white_space_that_is_a_token_ends_nothing() -> None:
    tokenizer = chat_tokenizer(CHATML.replace("<|im_end|>", "  <|im_end|>"))
    tokenizer.add_tokens(["  "])
    assert ends_of(routed(), tokenizer) == Ends((0, 258))


def test_a_merged_export_tells_other_programs_where_a_turn_ends(
    base_folder: Path, tmp_path: Path
) -> None:
    chat_tokenizer(CHATML).save_pretrained(base_folder)
    make_checkpoint(base_folder, tmp_path / "checkpoint")
    export_merged(tmp_path / "checkpoint", tmp_path / "merged")
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [0, 258]


@pytest.mark.parametrize("form", ["merged", "transformers", "vllm"])
def test_an_export_writes_what_transformers_may_save_again(
    form: Any, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat_tokenizer(CHATML).save_pretrained(base_folder)
    said: dict[str, Any] = {"temperature": 0.6, "top_p": 0.9, "length_penalty": 2.0}
    said |= {"repetition_penalty": 1.3, "pad_token_id": 3, "eos_token_id": 0}
    (base_folder / "generation_config.json").write_text(json.dumps(said))
    model, info = make_checkpoint(base_folder, tmp_path / "checkpoint")
    if form == "merged":
        export_merged(tmp_path / "checkpoint", tmp_path / "out")
    else:
        for site in (Site(0, "mlp"), Site(1, "attn")):  # makes a pair that can go
            set_constant(routers(model)[site], -1.0)
        save(model, tmp_path / "checkpoint", describe(model, info.base), overwrite=True)
        data, cutting = [str(write_documents(tmp_path))], DataConfig(block_size=16)
        export_static(
            tmp_path / "checkpoint", tmp_path / "out", data=data, cutting=cutting, form=form
        )
    right = GenerationConfig(repetition_penalty=1.3, pad_token_id=3, eos_token_id=[0, 258])
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert found == right
    found.max_length = 30
    found.save_pretrained(tmp_path / "again")
    (warning,) = [each for each in caplog.messages if "not written" in each]
    assert all(f"{name}={said[name]!r}" in warning for name in ("temperature", "top_p"))


@pytest.mark.parametrize("ignores", [False, True])
def test_in_vllm_a_request_ends_where_it_does_in_our_server(ignores: bool) -> None:
    params = SimpleNamespace(
        stop=["<|im_start|>", "User:"], stop_token_ids=[7], _all_stop_token_ids={7},
        ignore_eos=ignores, detokenize=True, include_stop_str_in_output=False,
        output_text_buffer_length=0,
    )  # fmt: skip
    settings = {"eos_token_id": 9, "stop_strings": ["a longer stop string"]}
    add_ends(params, settings, chat_tokenizer(CHATML))
    assert params.stop_token_ids == ([7, 257] if ignores else [0, 7, 9, 257, 258])
    assert params._all_stop_token_ids == set(params.stop_token_ids)
    own = [] if ignores else ["a longer stop string"]
    assert params.stop == [*own, "<|im_start|>", "User:"]
    assert params.output_text_buffer_length == (0 if ignores else 19)


@pytest.mark.parametrize(
    ("stop", "mixed"), [("<|im_end|>", False), ("User:", False), ("x<|im_end|>", True)]
)
def test_a_stop_that_text_alone_never_matches_is_told_apart(stop: str, mixed: bool) -> None:
    assert have_control_tokens(chat_tokenizer(CHATML), [stop]) is mixed
