import re

import pytest
import torch
from tokenizers import processors

from cases import KEEP_ALL
from skipgpt.analysis import trace_text
from skipgpt.config import RouterConfig
from skipgpt.errors import SkipGPTError
from skipgpt.evaluation.windows import rows_of
from skipgpt.model.state import record_routing, use_rule
from skipgpt.report.charts.routing_map import RoutingMap, routing_map
from skipgpt.report.terminal import Scale
from skipgpt.routing.decision import Forced, Site
from tiny import byte_tokenizer, tiny_routed

TOKENIZER = byte_tokenizer()
SMALL = RoutingMap(
    ["a", " b", "<i>&\"'"],
    attn=[[True, True], [True, False], [False, False]],
    mlp=[[True, True], [False, True], [False, False]],
)


def test_a_map_has_a_row_a_token_and_a_cell_a_layer() -> None:
    model = tiny_routed(router=RouterConfig(normalize=True))
    made = routing_map(model, TOKENIZER, "The cat sat.")
    assert made.tokens == list("The cat sat.")
    assert {len(row) for rows in (made.attn, made.mlp) for row in rows} == {3}
    assert len(made.attn) == len(made.mlp) == 12
    ids = TOKENIZER("The cat sat.", return_tensors="pt").input_ids
    with record_routing(model) as trace, torch.no_grad():
        model(ids)
    assert made.sparsity == pytest.approx(trace.sparsity())
    keeps = trace.steps[0].decisions
    assert made.attn[5] == [keeps[layer].attn.keep[0, 5].item() for layer in range(3)]
    assert made.mlp[5] == [keeps[layer].mlp.keep[0, 5].item() for layer in range(3)]


def test_forced_routes_show() -> None:
    model = tiny_routed()
    with use_rule(model, KEEP_ALL):
        assert routing_map(model, TOKENIZER, "ab").sparsity == 0
    with use_rule(model, Forced.without([Site(1, "mlp")])):
        made = routing_map(model, TOKENIZER, "ab")
    assert made.attn == [[True] * 3] * 2
    assert made.mlp == [[True, False, True]] * 2
    assert made.sparsity == pytest.approx(1 / 6)


def test_terminal_text_without_colour_is_plain() -> None:
    assert SMALL.to_terminal(colour=False).splitlines() == [
        " token  layer 1 to 2   █ both  ▀ attention only  ▄ MLP only  · neither",
        "     a  ██  4/4",
        "    ·b  ▀▄  2/4",
        "<i>&\"'  ··  0/4",
    ]
    assert "\033" not in SMALL.to_terminal(colour=False)


def test_colour_only_adds_escapes_and_is_that_of_generate() -> None:
    coloured = SMALL.to_terminal(colour=True)
    assert re.sub("\033\\[[\\d;]+m", "", coloured) == SMALL.to_terminal(colour=False)
    assert Scale.around(SMALL.sparsity).paint("·b", 0.5) in coloured


def test_a_map_says_the_sparsity_that_a_trace_measures() -> None:
    model = tiny_routed(router=RouterConfig(normalize=True))
    text = "The cat sat." * 20  # 240 tokens, of which the model reads 128 at once
    trace = trace_text(
        model, TOKENIZER, rows_of(TOKENIZER(text, return_tensors="pt").input_ids[0], 128)
    )
    made = routing_map(model, TOKENIZER, text)
    assert made == RoutingMap.of(trace)
    assert made.sparsity == pytest.approx(trace.measured.sparsity["module"], abs=1e-12)


def test_a_character_of_several_tokens_stands_at_the_last() -> None:
    assert routing_map(tiny_routed(), TOKENIZER, "a🙂").tokens == ["a", "", "", "", "🙂"]


def test_tokens_cannot_steer_the_terminal() -> None:
    text = RoutingMap(["\r", "\x1b[31m", "a\nb"], [[True]] * 3, [[True]] * 3).to_terminal(False)
    assert len(text.splitlines()) == 4
    assert all(character.isprintable() for line in text.split("\n") for character in line)


def test_a_text_that_predicts_no_token_is_refused() -> None:
    for text, error in (("", "got no token"), ("a", "1 token")):
        with pytest.raises(SkipGPTError, match=error):
            routing_map(tiny_routed(), TOKENIZER, text)


def test_a_map_begins_with_what_the_tokenizer_puts_before_a_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    model = tiny_routed(router=RouterConfig(normalize=True))
    made = routing_map(model, tokenizer, "cat")
    assert len(made.attn) == len(tokenizer("cat")["input_ids"]) == 4
    with record_routing(model) as trace, torch.no_grad():
        model(tokenizer("cat", return_tensors="pt").input_ids)
    assert made.sparsity == pytest.approx(trace.sparsity())
