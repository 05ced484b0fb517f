"""Turns of a chat: given to the template as clients send them, or refused by field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from skipgpt.data.chat import chat_ids
from skipgpt.errors import ConfigError
from skipgpt.generation import generate
from skipgpt.model.loading.generation_settings import ends_in
from skipgpt.serving.protocol import ChatRequest
from tiny import byte_tokenizer, tiny_routed

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = (
    "{% for m in messages %}<{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}("
    "{% for key, value in call.function.arguments.items() %}{{ key }}={{ value }}{% endfor %})"
    "{% endfor %};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
USERS = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }};{% endfor %}"
CALL = {"id": "c1", "type": "function", "function": {"name": "feed", "arguments": '{"cat": 3}'}}
CALLED = [
    {"role": "user", "content": "Feed", "name": None},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None},
    {"role": "tool", "tool_call_id": "c1", "content": "fed"},
]


def tokenizer(template: str | None) -> Any:
    made = byte_tokenizer()
    made.chat_template = template
    return made


def read(template: str | None, messages: list[dict[str, Any]], **wanted: Any) -> str:
    """What the model reads of a request."""
    asked = ChatRequest.model_validate({"messages": messages, **wanted})
    turns = [message.turn() for message in asked.messages]
    made = tokenizer(template)
    return str(made.decode(chat_ids(made, turns, **asked.template_options)))


def test_calls_of_tools_and_their_results_are_given_to_the_template() -> None:
    right = "<user>Feed;<assistant>feed(cat=3);<tool>fed;<assistant>"
    assert read(TOOLS, CALLED) == right


def test_a_name_is_given_to_the_template() -> None:
    turns = [{"role": "user", "name": "Ann", "content": "Hi"}]
    assert read(TOOLS, turns) == "<user Ann>Hi;<assistant>"


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (PLAIN, [{"role": "user", "name": "Ann", "content": "Hi"}], r"messages\.0\.name"),
        (PLAIN, CALLED, r"messages\.1\.tool_calls"),
        (USERS, CALLED[:1] + CALLED[2:], r"messages\.1 \(role 'tool'\)"),
        (USERS, [{"role": "system", "content": "Purr"}, *CALLED[:1]], "role 'system'"),
        (None, CALLED[:1], "a tokenizer without one"),
        ("{{ raise_exception('roles alternate') }}", CALLED[:1], "roles alternate"),
    ],
)
def test_what_the_template_does_not_read_is_refused(
    template: str | None, turns: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read(template, turns)


@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_a_turn_without_content_has_to_call_tools(content: dict[str, None]) -> None:
    with pytest.raises(ValidationError, match="only a turn with tool_calls may have none"):
        ChatRequest.model_validate({"messages": [{"role": "user", **content}]})


BEGUN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]


@pytest.mark.parametrize(
    ("wanted", "right"),
    [
        ({}, "<user>Hi;<assistant>Hel"),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            "<user>Hi;<assistant>Hel",
        ),
        ({"continue_final_message": False}, "<user>Hi;<assistant>Hel;<assistant>"),
        ({"add_generation_prompt": True}, "<user>Hi;<assistant>Hel;<assistant>"),
        ({"add_generation_prompt": False}, "<user>Hi;<assistant>Hel;"),
    ],
)
def test_a_turn_of_the_assistant_at_the_end_goes_on(wanted: dict[str, bool], right: str) -> None:
    assert read(PLAIN, BEGUN, **wanted) == right


def test_a_turn_cannot_both_go_on_and_begin() -> None:
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(ValidationError, match="exclude each other"):
        ChatRequest.model_validate({"messages": BEGUN, **both})


@pytest.mark.parametrize("wanted", [{}, {"continue_final_message": True}], ids=["default", "asked"])
def test_an_empty_turn_of_the_assistant_at_the_end_is_a_new_one(wanted: dict[str, bool]) -> None:
    right = read(PLAIN, BEGUN[:1])
    assert read(PLAIN, [BEGUN[0], {"role": "assistant", "content": ""}], **wanted) == right
    assert right.endswith("<assistant>")


@pytest.mark.parametrize("template", [PLAIN, TOOLS])
@pytest.mark.parametrize("content", [None, "", "Hel"])
def test_a_turn_that_calls_tools_cannot_be_continued(template: str, content: str | None) -> None:
    call = CALLED[1] | {"content": content}
    with pytest.raises(ConfigError, match=r"messages\.1, which calls tools, as the turn to cont"):
        read(template, [CALLED[0], call])
    again = read(TOOLS, [CALLED[0], call], add_generation_prompt=True)
    assert again.endswith("feed(cat=3);<assistant>")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"top_logprobs": 3}, "top_logprobs: expected logprobs to be true"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs: expected logprobs to be true"),
        ({"max_tokens": 4, "max_completion_tokens": 2}, "max_tokens and max_completion_tokens"),
    ],
)
def test_a_field_that_another_one_cancels_is_refused(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ChatRequest.model_validate({"messages": BEGUN, **wanted})


def test_fields_that_agree_are_taken() -> None:
    wanted = {"max_tokens": 4, "max_completion_tokens": 4, "top_logprobs": 0}
    asked = ChatRequest.model_validate({"messages": BEGUN, **wanted})
    assert (asked.max_new_tokens, asked.places) == (4, None)


def test_generate_puts_a_prompt_into_the_template() -> None:
    model, made = tiny_routed(initializer_range=0.2), tokenizer(PLAIN)
    told: list[Any] = []
    found = generate(model, made, "Hi", chat=True, max_new_tokens=6, on_token=told.append)
    ids = torch.tensor([made("<user>Hi;<assistant>").input_ids])
    with torch.no_grad():  # by hand, as the template reads
        for _ in range(found.new_tokens):
            best = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, best[None, None]], 1)
    assert found.prompt_tokens == len("<user>Hi;<assistant>")
    assert found.text == made.decode(ids[0, found.prompt_tokens :], skip_special_tokens=True)
    assert "".join(token.text for token in told) == "<user>Hi;<assistant>" + found.text


PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for p in m['content'] %}{{ p['text'] }}"
    "{% endfor %};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_template_that_wants_parts_is_given_parts() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert read(PARTS, [*turns, turns[0]]) == "<user>Hi;<assistant>Yo;<user>Hi;<assistant>"


@pytest.mark.parametrize("template", [PARTS, PARTS.replace("p['text']", "p['text'] | upper")])
def test_the_end_of_a_turn_is_found_in_such_a_template(template: str) -> None:
    made = byte_tokenizer()
    made.add_tokens(["[END]"])
    made.chat_template = template.replace(";", "[END]")
    assert made.convert_tokens_to_ids("[END]") in ends_in({}, made).ids


def test_a_message_in_parts_cannot_end_its_turn() -> None:
    made = byte_tokenizer()
    made.add_tokens(["[END]"])
    made.chat_template = PARTS.replace(";", "[END]")
    ids = chat_ids(made, [{"role": "user", "content": "a[END]b"}])
    assert ids.count(made.convert_tokens_to_ids("[END]")) == 1
    assert "a[END]b" in made.decode(ids)
