"""Each turn, field and item of a chat is given to the template, or refused by its place."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from pydantic import ValidationError

from skipgpt.data.chat import chat_ids
from skipgpt.errors import ConfigError
from skipgpt.serving.protocol import ChatRequest
from tiny import byte_tokenizer

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
LAST = PLAIN.replace("messages", "messages[-2:]")
FIRST = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }};{% endif %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}{{ f.name }}({{ f.arguments.cat }})"
    "{% else %}{{ m.content }}{% endif %};{% endfor %}"
)
"""In the style of Llama 3.1: one system turn, and of a turn its content or its first call."""

ALL = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %};{% endfor %}"
)
RULES, ASKED = {"role": "system", "content": "Purr"}, {"role": "user", "content": "Feed"}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "fed"}


def calls(*arguments: str, **more: Any) -> dict[str, Any]:
    made = [
        {"id": f"c{n}", "type": "function", "function": {"name": "feed", "arguments": each}}
        for n, each in enumerate(arguments)
    ]
    return {"role": "assistant", "content": None, "tool_calls": made, **more}


def read(template: str, messages: list[dict[str, Any]]) -> str:
    """What the model reads of a request."""
    made = byte_tokenizer()
    made.chat_template = template
    asked = ChatRequest.model_validate({"messages": messages, "add_generation_prompt": True})
    turns = [message.turn() for message in asked.messages]
    return str(made.decode(chat_ids(made, turns, **asked.template_options)))


def test_what_a_template_reads_is_given_to_it() -> None:
    turns = [RULES, ASKED, calls('{"cat": 3}'), RESULT]
    right = "<system>Purr;<user>Feed;<assistant>feed(3);<tool>fed;"
    assert read(FIRST, turns) == right


@pytest.mark.parametrize(
    ("template", "turns", "place"),
    [
        (FIRST, [RULES, ASKED, RULES], "messages.2 (role 'system')"),
        (FIRST, [ASKED, RULES], "messages.1 (role 'system')"),
        (FIRST, [ASKED, RULES | {"content": ""}], "messages.1 (role 'system')"),
        (LAST, [ASKED, ASKED, ASKED], "messages.0 (role 'user')"),
        (FIRST, [ASKED, calls('{"cat": 3}', content="So")], "messages.1.content"),
        (FIRST, [ASKED, calls('{"cat": 3}', '{"cat": 3}')], "messages.1.tool_calls.1"),
        (FIRST, [ASKED, calls('{"cat": 3}', "{}")], "messages.1.tool_calls.1"),
        (
            FIRST,
            [ASKED, calls('{"cat": 3, "dry": false}')],
            "messages.1.tool_calls.0.function.arguments.dry",
        ),
        (PLAIN, [ASKED, calls('{"cat": 3}', content="So")], "messages.1.tool_calls"),
        (PLAIN, [ASKED | {"mood": {"at": ["", 0]}}], "messages.0.mood"),
    ],
)
def test_a_part_that_is_read_hides_none_that_is_not(
    template: str, turns: list[dict[str, Any]], place: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read(template, turns)
    assert error.value.got == place


def test_content_in_parts_is_read_part_by_part() -> None:
    made = byte_tokenizer()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    made.chat_template = "{% for p in messages[0].content[:1] %}{{ p.text }}{% endfor %}"
    assert made.decode(chat_ids(made, [{"role": "user", "content": parts[:1]}])) == "one"
    with pytest.raises(ConfigError, match=r"messages\.0\.content\.1;"):
        chat_ids(made, [{"role": "user", "content": parts}])


def test_a_part_of_content_holds_nothing_but_text() -> None:
    part: dict[str, Any] = {"type": "text", "text": "Hi", "annotations": None}
    assert read(PLAIN, [{"role": "user", "content": [part]}]) == "<user>Hi;"
    with pytest.raises(ValidationError, match=r"messages\.0\.content\n.* not cache_control"):
        read(PLAIN, [{"role": "user", "content": [part | {"cache_control": {"type": "once"}}]}])


@pytest.mark.parametrize(
    ("template", "more", "right"),
    [
        ("{% if messages[0].mood != 'glad' %}{{ raise_exception('!') }}{% endif %}", "glad", ""),
        ("{% if messages[0].mood > 2 %}loud {% endif %}", 3, "loud "),
        ("{{ 'kindly ' if messages[0].mood }}", True, "kindly "),
        ("{{ 'rudely ' if messages[0].mood == false }}", False, "rudely "),
    ],
)
def test_a_field_is_read_that_a_template_only_decides_by(
    template: str, more: Any, right: str
) -> None:
    assert read(template + PLAIN, [ASKED | {"mood": more}]) == right + "<user>Feed;"


@pytest.mark.parametrize("content", ["", " ", "\n"])
def test_nothing_is_lost_of_an_empty_turn(content: str) -> None:
    turns = [ASKED, {"role": "assistant", "content": content}, ASKED]
    assert read(ALL, turns) == "<user>Feed;<assistant>;<user>Feed;"
    skipping = ALL.replace("in messages", "in messages if m.content.strip()")
    assert read(skipping, turns) == "<user>Feed;<user>Feed;"


@pytest.mark.parametrize(
    "turns",
    [
        [ASKED, {"role": "assistant", "content": " Fed. "}],
        [ASKED, calls('{"cat": 3, "dry": false, "on": {"days": [1, 0]}, "how": ""}'), RESULT],
    ],
    ids=["text", "calls"],
)
def test_a_long_chat_renders_its_template_as_rarely_as_a_short_one(
    turns: list[dict[str, Any]],
) -> None:
    rendered = []
    for times in (1, 50):
        plain = type(byte_tokenizer()).apply_chat_template
        with mock.patch.object(
            type(byte_tokenizer()), "apply_chat_template", autospec=True, side_effect=plain
        ) as render:
            assert read(ALL, [RULES, *turns * times]).count(";") == 1 + len(turns) * times
        rendered.append(render.call_count)
    assert rendered[0] == rendered[1] <= 4
