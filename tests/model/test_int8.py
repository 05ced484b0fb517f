"""Weights in 8 bits on a CPU."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

import zoo
from cases import BATCHES, CLOSE, LEFT_PADDED, Inputs, base, families, layouts, routed
from command import skipgpt as command
from runs import logits, shared_checkpoint, write_documents
from skipgpt.checkpoint.loading import load
from skipgpt.cost import Forward, layer_costs, work
from skipgpt.model.families.linear import in_width, is_plain, out_width
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.loading.int8 import Int8Linear, is_int8, products_are_exact, quantize_int8
from skipgpt.model.state import execution, record_routing, routing_state
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers
from tiny import tiny_base

pytestmark = pytest.mark.skipif(
    not products_are_exact(), reason="8-bit products overflow on this CPU"
)

EXPERTS = [name for name, sizes in zoo.ZOO.items() if any("experts" in size for size in sizes)]


def _layer(kind: str) -> nn.Module:
    """Twelve inputs and seven outputs, with a bias."""
    made = Conv1D(7, 12) if kind == "conv1d" else nn.Linear(12, 7)
    if kind == "falcon":
        made = FalconLinear(12, 7)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


every_kind = pytest.mark.parametrize("kind", ["linear", "conv1d", "falcon"])


@every_kind
@torch.no_grad()
def test_a_layer_computes_with_what_was_rounded(kind: str) -> None:
    plain, rows = _layer(kind), torch.randn(2, 5, 12)
    held = Int8Linear(plain)
    weight = plain.weight.T if kind == "conv1d" else plain.weight
    steps = weight.abs().amax(1, keepdim=True) / 127
    wanted_weight = (weight / steps).round() * steps
    steps = rows.abs().amax(-1, keepdim=True) / 127
    wanted = nn.functional.linear((rows / steps).round() * steps, wanted_weight, plain.bias)
    torch.testing.assert_close(held(rows), wanted, rtol=0, atol=1e-5)
    assert (held(rows) - plain(rows)).norm() < 0.02 * plain(rows).norm()
    assert (in_width(held), out_width(held)) == (12, 7)
    assert not is_plain(held)


@torch.no_grad()
def test_a_tokens_output_does_not_depend_on_its_neighbours() -> None:
    held, rows = Int8Linear(_layer("linear")), torch.randn(9, 12)
    alone = torch.cat([held(row[None]) for row in rows])
    rows[4] *= 1e4
    beside_a_giant = held(rows)
    others = torch.arange(9) != 4
    assert torch.equal(beside_a_giant[others], alone[others])


@torch.no_grad()
def test_zeros_give_the_bias_no_row_gives_none_and_a_nan_stays() -> None:
    plain = _layer("linear")
    plain.weight[3] = 0
    held = Int8Linear(plain)
    assert torch.equal(held(torch.zeros(2, 12)), plain.bias.expand(2, 7))
    assert held(torch.ones(1, 12))[0, 3] == plain.bias[3]
    assert held(torch.empty(0, 12)).shape == (0, 7)
    broken = torch.ones(2, 12)
    broken[1, 5] = torch.nan
    assert held(broken)[1].isnan().all()
    assert held(broken)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_rows_come_back_in_their_own_dtype(dtype: torch.dtype) -> None:
    plain, rows = _layer("linear"), torch.randn(3, 12).to(dtype)
    found = Int8Linear(copy.deepcopy(plain).to(dtype))(rows)
    assert found.dtype == dtype
    expected = plain(rows.float())
    assert (found.float() - expected).norm() < 0.03 * expected.norm()


@layouts(but=EXPERTS)
@torch.no_grad()
def test_sparse_equals_gated(family: str) -> None:
    model = quantize_int8(routed(family))
    for inputs in BATCHES.values():
        with execution(model, "gated"), record_routing(model) as trace:
            gated = model(**inputs.given).logits
        sparse = model(**inputs.given).logits
        assert 0.1 < trace.sparsity() < 0.9
        # Rows are rounded alike unless a sum in attention differs by its last bit on an edge.
        torch.testing.assert_close(sparse[inputs.real], gated[inputs.real], **CLOSE)


@families(["llama", "gpt2", "falcon", "phi3", "cohere"])
@torch.no_grad()
def test_every_linear_layer_is_quantised_and_nothing_else(family: str) -> None:
    plain, model = routed(family), quantize_int8(routed(family))
    row = FAMILIES[family]
    head = {name for name, m in plain.named_modules() if m is plain.get_output_embeddings()}
    inside = {
        name
        for name, module in plain.named_modules()
        if is_plain(module) and any(f".{part}." in f".{name}." for part in (row.attn, row.mlp))
    }
    found = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert found == head | inside
    assert len(inside) >= 4 * 3
    others = [p for n, p in model.named_parameters() if n.rpartition(".")[0] not in found]
    assert others
    assert all(p.is_floating_point() for p in others)
    assert not any(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_dense_models_are_quantised_too_and_routers_may_come_and_go() -> None:
    dense, model = quantize_int8(base()), quantize_int8(routed())
    plain = logits(base())
    assert 1e-3 < (logits(dense) - plain).norm() / plain.norm() < 0.05
    with execution(model, "dense"):
        assert torch.equal(logits(model), logits(dense))
    torch.default_generator.manual_seed(1)  # as `routed` draws its routers
    later = add_routers(quantize_int8(base())).eval()
    routing_state(later).execution = "sparse"
    assert torch.equal(logits(later), logits(model))
    assert torch.equal(logits(remove_routers(model)), logits(dense))


@torch.no_grad()
def test_decoding_gives_the_logits_of_one_forward() -> None:
    model, inputs = quantize_int8(routed()), LEFT_PADDED
    whole = model(**inputs.given, use_cache=False).logits
    output = model(**inputs.chunk(0, 8), use_cache=True)
    found = [output.logits]
    for n in range(8, inputs.tokens):
        given = inputs.chunk(n, n + 1)
        output = model(**given, past_key_values=output.past_key_values, use_cache=True)
        found.append(output.logits)
    torch.testing.assert_close(
        torch.cat(found, 1)[inputs.real], whole[inputs.real], rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_gated_execution_is_still_one_graph() -> None:
    torch._dynamo.reset()
    model, inputs = quantize_int8(routed()), Inputs((3, 0), padded=True)
    with execution(model, "gated"):
        expected = model(**inputs.given, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        actual = compiled(**inputs.given, use_cache=False).logits
    torch.testing.assert_close(actual[inputs.real], expected[inputs.real], **CLOSE)


def test_weights_take_a_quarter_and_the_old_ones_are_gone() -> None:
    model = routed()
    layer = model.model.layers[1]
    before = sum(p.nbytes for p in layer.mlp.parameters())
    old = [weakref.ref(p) for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    quantize_int8(model)
    gc.collect()
    assert len(old) == 3 * 7
    assert not any(each() for each in old)
    assert sum(p.nbytes for p in layer.mlp.parameters()) == before / 4


def test_a_head_tied_to_the_embedding_gets_weights_of_its_own() -> None:
    model = tiny_base(tie_word_embeddings=True)
    quantize_int8(model)
    assert isinstance(model.lm_head, Int8Linear)
    assert model.model.embed_tokens.weight.dtype == torch.float32


def test_counts_stay_and_bytes_shrink() -> None:
    plain, model = routed(), quantize_int8(routed())
    assert layer_costs(routed_layers(model)[0]) == layer_costs(routed_layers(plain)[0])
    one, other = (work(each, Forward(cached=8)) for each in (model, plain))
    assert one.weight_bytes == other.weight_bytes / 4
    assert one.flops == other.flops


@torch.no_grad()
def test_a_loaded_checkpoint_is_quantised_on_request() -> None:
    folder = shared_checkpoint()
    plain, _ = load(folder, merge=True)
    model, _ = load(folder, merge=True, quantize="int8")
    assert not is_int8(plain)
    assert torch.equal(logits(model), logits(quantize_int8(plain)))


def test_eval_and_generate_take_it(tmp_path: Path) -> None:
    text, folder = write_documents(tmp_path, count=8), shared_checkpoint()
    losses = []
    for more in ((), ("--quantize", "int8")):
        shape = ("--text", text, "--block-size", "16", "--execution", "dense", "--json")
        finished = command("eval", folder, *shape, *more)
        assert finished.status == 0, finished.stderr
        losses.append(json.loads(finished.stdout)["nll_per_token"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    finished = command(
        *("generate", folder, "Once", "--max-new-tokens", "3", "--quantize", "int8", "--json")
    )
    assert finished.status == 0, finished.stderr
    assert json.loads(finished.stdout)["new_tokens"] == 3
