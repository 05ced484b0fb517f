"""The server answers as OpenAI's API does, with the text that `generate` gives."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from running_server import CONTEXT, KEY, Server, streamed
from skipgpt.generation import generate
from skipgpt.model.sparsity import at_sparsity


def _alone(loaded: Any, prompt: str, sparsity: float = 0.25, tokens: int = 24) -> Any:
    model, tokenizer = loaded
    with at_sparsity(model, sparsity):
        return generate(model, tokenizer, prompt, max_new_tokens=tokens)


def test_it_is_bound_to_loopback_and_says_where(server: Server) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert json.loads(server.text("/health")) == {"status": "ok"}


def test_the_model_is_listed_under_the_name_of_its_folder(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert server.client().models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        server.client().models.retrieve("other")


@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_a_completion_is_what_generate_gives(
    server: Server, loaded: Any, sparsity: float | None
) -> None:
    extra = {} if sparsity is None else {"sparsity": sparsity}
    answer, alone = (
        server.complete(extra_body=extra),
        _alone(loaded, "The cats", sparsity or 0.25),
    )
    assert answer.choices[0].text == alone.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == alone.new_tokens
    assert answer.usage.prompt_tokens == len("The cats")
    assert answer.skipgpt["sparsity"] == pytest.approx(alone.sparsity)


def test_a_completion_names_what_its_sparsity_counts(server: Server, loaded: Any) -> None:
    answer = server.complete(extra_body={"sparsity": 0.3, "budget": "flops"})
    model, tokenizer = loaded
    with at_sparsity(model, 0.3, budget="flops"):
        alone = generate(model, tokenizer, "The cats", max_new_tokens=24)
    assert answer.choices[0].text == alone.text
    assert answer.skipgpt["sparsity"] == pytest.approx(alone.sparsity)


@pytest.mark.parametrize("prompt", [["The cats"], list(b"abc"), [list(b"abc")]])
def test_a_prompt_may_be_tokens_or_a_list_of_one(server: Server, prompt: Any) -> None:
    assert server.complete(prompt).usage.completion_tokens == 24


def test_sampling_repeats_itself_with_a_seed(server: Server) -> None:
    once, again, other = (
        server.complete(temperature=1.5, top_p=0.9, seed=seed).choices[0].text for seed in (7, 7, 8)
    )
    assert once == again != other


def test_sixteen_streams_at_once_are_those_of_one_after_the_other(
    server: Server, loaded: Any
) -> None:
    asked = [(f"Story {n}", (0.0, 0.25, 0.5)[n % 3]) for n in range(16)]

    def stream(prompt: str, sparsity: float) -> str:
        extra = {"sparsity": sparsity}
        return streamed(server.complete(prompt, stream=True, extra_body=extra))

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda each: stream(*each), asked))
    assert together == [_alone(loaded, *each).text for each in asked]
    assert len(set(together)) > 8


def test_a_stream_ends_with_its_reason_and_on_request_its_usage(server: Server) -> None:
    whole = server.complete()
    chunks = list(server.complete(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] == "length"
    assert not any(reasons[:-1])
    assert len(chunks) > 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text(server: Server, stream: bool) -> None:
    whole = server.complete().choices[0].text
    stop = whole[9:11]
    answer = server.complete(stop=[stop, "never there"], stream=stream)
    text = streamed(answer) if stream else answer.choices[0].text
    assert text == whole[: whole.index(stop)]


def test_logprobs_are_those_of_the_chosen_tokens(server: Server) -> None:
    answer = server.complete(logprobs=3).choices[0]
    logs = answer.logprobs
    assert len(logs.tokens) == len(logs.token_logprobs) == 24
    assert logs.text_offset[0] == 0
    assert sorted(logs.text_offset) == logs.text_offset
    for value, top in zip(logs.token_logprobs, logs.top_logprobs, strict=True):
        assert value == max(top.values()) <= 0  # greedy
    streams = server.complete(logprobs=3, stream=True)
    chunks = [chunk.choices[0].logprobs for chunk in streams]
    assert [v for each in chunks if each for v in each.token_logprobs] == logs.token_logprobs


def test_a_chat_goes_through_the_template(server: Server, loaded: Any) -> None:
    parts = [{"type": "text", "text": "What do "}, {"type": "text", "text": "cats do?"}]
    messages: Any = [{"role": "system", "content": "Short."}, {"role": "user", "content": parts}]
    prompt = "system: Short.\nuser: What do \ncats do?\nassistant:"  # a part, a line, as in vLLM
    given: Any = {"model": "tiny", "messages": messages, "max_tokens": 16, "temperature": 0}
    client = server.client().chat.completions
    answer = client.create(**given, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == _alone(loaded, prompt, tokens=16).text
    places = answer.choices[0].logprobs.content
    assert len(places) == 16
    assert all(place.logprob == place.top_logprobs[0].logprob for place in places)
    chunks = list(client.create(**given, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == answer.choices[0].message.content


def test_a_client_that_leaves_ends_its_request(server: Server) -> None:
    before = server.metric("skipgpt_cancelled_total")
    stream = server.complete(max_tokens=CONTEXT - 100, stream=True)
    next(iter(stream))
    stream.close()
    made = server.metric("skipgpt_generated_tokens_total")
    assert server.complete().usage.completion_tokens == 24
    assert server.metric("skipgpt_cancelled_total") == before + 1
    assert server.metric("skipgpt_generated_tokens_total") - made < CONTEXT / 2
    assert server.metric("skipgpt_running") == server.metric("skipgpt_waiting") == 0


def test_metrics_count_tokens_and_what_was_skipped(server: Server) -> None:
    names = ("skipgpt_decisions_total", "skipgpt_skipped_total", "skipgpt_generated_tokens_total")
    before = [server.metric(name) for name in names]
    answer = server.complete(extra_body={"sparsity": 0.5})
    decisions, skipped, tokens = (
        server.metric(name) - was for name, was in zip(names, before, strict=True)
    )
    assert tokens == 24
    assert skipped / decisions == pytest.approx(answer.skipgpt["sparsity"])
    assert 0 < server.metric("skipgpt_sparsity") < 1
    assert server.metric("skipgpt_tokens_per_second") > 0


def test_fields_that_are_null_or_ask_for_nothing_else_are_as_if_not_there(server: Server) -> None:
    nothing: dict[str, Any] = {"top_p": None, "stop": None, "stream": None, "seed": None, "n": 1}
    answer = server.complete(**nothing, user="me", extra_body={"sparsity": None, "top_k": -1})
    assert answer.choices[0].text == server.complete().choices[0].text


@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 1e-320])
def test_a_temperature_next_to_nothing_is_greedy(server: Server, temperature: float) -> None:
    answer = server.complete(temperature=temperature)
    assert answer.choices[0].text == server.complete().choices[0].text


def test_a_seed_is_for_its_own_request(server: Server) -> None:
    others = []
    for _ in range(3):
        server.complete(temperature=1, seed=7)
        others.append(server.complete(temperature=1).choices[0].text)
    assert len(set(others)) == 3


def test_a_client_that_leaves_the_line_is_not_served(server: Server) -> None:
    before = server.metric("skipgpt_cancelled_total")
    long = server.complete(max_tokens=CONTEXT - 100, stream=True)
    next(iter(long))
    with pytest.raises(openai.APITimeoutError):
        server.client().with_options(timeout=0.5).completions.create(
            model="tiny", prompt="a", max_tokens=24
        )
    deadline = time.monotonic() + 30
    time.sleep(1.5)  # longer than the server takes to look
    long.close()
    while server.metric("skipgpt_cancelled_total") < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.metric("skipgpt_waiting") == 0


def test_a_chat_as_clients_send_it_back(client: Any) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns: list[Any] = [
        {"role": "user", "content": "Cats?"},
        {"role": "assistant", "content": "Me"},
    ]

    def ask(messages: list[Any], **more: Any) -> Any:
        body = {"messages": messages, "max_tokens": 4, "temperature": 0, **more}
        return client.post("/v1/chat/completions", headers=headers, json=body)

    answer = ask(turns, logprobs=True, top_logprobs=20)
    assert answer.json()["usage"]["prompt_tokens"] == len("user: Cats?\nassistant: Me")
    (choice,) = answer.json()["choices"]
    places = choice["logprobs"]["content"]
    joined = b"".join(bytes(place["bytes"]) for place in places)
    assert joined.decode() == choice["message"]["content"]
    assert [len(place["top_logprobs"]) for place in places] == [20] * len(places)
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    refused = ask([turns[0], calls, turns[0]])
    assert refused.status_code == 400  # its template has no place for calls
    assert "messages.1.tool_calls" in refused.json()["error"]["message"]


def test_a_completion_has_as_many_alternatives_as_were_asked_for(client: Any) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"prompt": "The cats", "max_tokens": 8, "temperature": 0, "logprobs": 20}
    answer = client.post("/v1/completions", headers=headers, json=body).json()
    top = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert [len(each) for each in top] == [20] * answer["usage"]["completion_tokens"]
