from __future__ import annotations

import json
import sys

import pytest

from skipgpt.errors import MissingExtraError
from skipgpt.serving.vllm import register
from skipgpt.serving.vllm.http import rewrite_body


def test_without_vllm_the_plug_in_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[vllm\]'"):
        register()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'{"prompt": "a"}', b'{"vllm_xargs": {"sparsity": 0.1}}'],
)
def test_a_request_without_sparsity_is_handed_on_as_it_is(body: bytes) -> None:
    assert rewrite_body(body) == body


def test_sparsity_joins_other_arguments_of_the_engine() -> None:
    body = json.dumps({"prompt": "a", "sparsity": 0.4, "vllm_xargs": {"more": 1}}).encode()
    assert json.loads(rewrite_body(body)) == {
        "prompt": "a",
        "vllm_xargs": {"more": 1, "sparsity": 0.4},
    }
    assert json.loads(rewrite_body(b'{"prompt": "a", "sparsity": null}')) == {"prompt": "a"}


def test_the_unit_of_a_sparsity_goes_with_it() -> None:
    body = json.dumps({"prompt": "a", "sparsity": 0.4, "budget": "flops"}).encode()
    both = {"sparsity": 0.4, "budget": "flops"}
    assert json.loads(rewrite_body(body)) == {"prompt": "a", "vllm_xargs": both}


def test_a_turn_of_the_assistant_at_the_end_goes_on_in_vllm_too() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    said = {"continue_final_message": True, "add_generation_prompt": False}
    assert json.loads(rewrite_body(json.dumps({"messages": turns}).encode())) == {
        "messages": turns,
        **said,
    }
    for unchanged in (
        {"messages": turns[:1]},
        {"messages": turns, "add_generation_prompt": True},
        {"messages": turns, "continue_final_message": False},
        {"messages": "a"},
        {"messages": []},
    ):
        body = json.dumps(unchanged).encode()
        assert rewrite_body(body) == body
