"""What is read from the stream of a long reply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import Completion

from benchmark_scripts import imported
from skipgpt.serving import generation
from skipgpt.serving.generation import TextChunk
from skipgpt.serving.replies import Reply

script = imported("long_reply")


def stream(texts: list[str], tokens: int) -> list[Completion]:
    """The chunks that the server sends, as the client hands them over: unchecked."""
    reply = Reply("tiny", chat=False, prompt_tokens=3)
    done = generation.Completion("length", tokens, decisions=8, skipped=2)
    bodies = [*(reply.chunk(TextChunk(text)) for text in texts), reply.closing(done)]
    return [Completion.construct(**body) for body in (*bodies, reply.usage_chunk(done))]


def read(texts: list[str], tokens: int, times: list[float], memory: list[int]) -> Any:
    clock, resident = iter(times), iter(memory)
    return script.read(stream(texts, tokens), lambda: next(resident), lambda: next(clock))


def test_the_pause_at_the_end_is_that_before_the_closing_chunk() -> None:
    # Two chunks with text, one without, the closing one, the usage.
    found = read(["a", "", "b"], 4, [1.0, 1.5, 2.0, 9.0, 9.5], [10, 20])
    assert found.closing_gap == 7.0
    assert found.gaps == [1.0]
    assert (found.finish_reason, found.tokens) == ("length", 4)


def test_text_in_the_closing_chunk_is_the_end_of_the_pause() -> None:
    body = stream(["a", "b"], 2)
    body[2].choices[0].text = "c"
    times = iter([1.0, 2.0, 5.0, 5.0])
    found = script.read(body, lambda: 0, lambda: next(times))
    assert found.closing_gap == 3.0
    assert len(found.times) == 3


def test_growth_beyond_keys_and_values_can_be_read_off() -> None:
    texts, memory = ["x"] * 16, [1000 + 30 * n for n in range(16)]
    rows = read(texts, 32, [float(n) for n in range(18)], memory).parts(10)
    assert [row["chunks"] for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16]
    # Two tokens a chunk, ten bytes each, after the first chunk.
    assert [row["keys_and_values_bytes"] for row in rows] == [20 * n for n in range(1, 16, 2)]
    assert [row["beyond_bytes"] for row in rows] == [10 * n for n in range(1, 16, 2)]
    assert all(row["median_gap_seconds"] == 1.0 for row in rows)


@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_a_reply_shorter_than_its_parts_is_reported_on(chunks: int) -> None:
    times = [float(n) for n in range(chunks + 2)]
    rows = read(["x"] * chunks, chunks, times, [5] * chunks).parts(1)
    assert [row["chunks"] for row in rows] == list(range(1, chunks + 1))
    assert rows[0]["median_gap_seconds"] is None


def test_a_reply_without_text_is_said() -> None:
    empty: Iterator[float] = iter([1.0, 2.0])
    with pytest.raises(SystemExit, match="no text"):
        script.read(stream([], 0), lambda: 0, lambda: next(empty))


def test_keys_and_values_of_a_base_are_counted_from_its_shape() -> None:
    # nano: 12 layers, keys and values, 1 head of size 32, float32
    assert script.bytes_per_token("nano", "float32") == 12 * 2 * 1 * 32 * 4
