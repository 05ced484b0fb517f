"""A family is a row and nothing else: one that is made up here, and the one in the documents."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

import reference
import zoo
from cases import BATCHES, CLOSE, KEEP_ALL, LEFT_PADDED, SITES
from lively import build_lively
from skipgpt.errors import UnsupportedModelError
from skipgpt.model.families.family import Family
from skipgpt.model.families.table import FAMILIES
from skipgpt.model.state import execution, record_routing, use_rule
from skipgpt.model.surgery import add_routers, remove_routers, routed_layers, routers
from skipgpt.routing.decision import Forced

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"


class OddConfig(PreTrainedConfig):
    model_type = "odd"
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 24, 3, 3, 257
    use_cache = True


class OddMixer(nn.Module):
    """Attention with one projection, queries first, and positions added to what it reads."""

    def __init__(self, config: OddConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.wide = nn.Linear(24, 3 * 24, bias=False)
        self.back = nn.Linear(24, 24)

    def forward(
        self, stream: Tensor, *, attention_mask: Tensor | None, memory: Any, position_ids: Tensor
    ) -> tuple[Tensor]:
        q, k, v = (
            each.unflatten(-1, (3, 8)).transpose(1, 2) for each in self.wide(stream).chunk(3, -1)
        )
        q = q * (1 + position_ids[:, None, :, None] / 10)
        if memory is not None:
            k, v = memory.update(k, v, self.index)
        causal = attention_mask is None and q.shape[2] > 1
        mixed = nn.functional.scaled_dot_product_attention(
            q, k, v, attention_mask, is_causal=causal
        )
        return (self.back(mixed.transpose(1, 2).flatten(2)),)


class OddBlock(GradientCheckpointingLayer):
    """Parallel: both modules read one norm, and their sum is scaled before it is added."""

    def __init__(self, config: OddConfig, index: int) -> None:
        super().__init__()
        self.shrink = 0.7
        self.entry = nn.LayerNorm(24)
        self.mixer = OddMixer(config, index)
        self.ffn = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
        self.ffn_exit = nn.LayerNorm(24)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        memory: Any,
        position_ids: Tensor,
    ) -> Tensor:
        read = self.entry(hidden_states)
        (mixed,) = self.mixer(
            read, attention_mask=attention_mask, memory=memory, position_ids=position_ids
        )
        return hidden_states + mixed * self.shrink + self.ffn_exit(self.ffn(read)) * self.shrink


class OddPreTrainedModel(PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "trunk"
    supports_gradient_checkpointing = True
    _no_split_modules = ("OddBlock",)
    _supports_sdpa = True


class OddModel(OddPreTrainedModel):
    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(257, 24)
        self.blocks = nn.ModuleList(OddBlock(config, n) for n in range(3))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = True,
    ) -> tuple[Tensor, Any]:
        stream = self.table(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(seen, seen + stream.shape[1])[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=stream,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for block in self.blocks:
            stream = block(stream, mask, memory=past_key_values, position_ids=position_ids)
        return stream, past_key_values


class OddForCausalLM(OddPreTrainedModel, GenerationMixin):
    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.trunk = OddModel(config)
        self.head = nn.Linear(24, 257, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.table

    def forward(self, input_ids: Tensor, **arguments: Any) -> CausalLMOutputWithPast:
        stream, cache = self.trunk(input_ids, **arguments)
        return CausalLMOutputWithPast(logits=self.head(stream), past_key_values=cache)


# As docs/extending.md goes through the fields, top to bottom.
ODD = Family(
    "odd",
    "Odd",
    layer="Block",
    attn="mixer",
    mlp="ffn",
    attn_norm=("entry",),
    mlp_norm=("entry",),
    mlp_after=("ffn_exit",),
    scale="shrink",
    parallel=True,
    fused="wide",
    query_first=True,
    output="back",
    cache="memory",
)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model of the made-up family, which lies where those of transformers do."""
    module = ModuleType("transformers.models.odd.modeling_odd")
    module.OddBlock, module.OddForCausalLM = OddBlock, OddForCausalLM
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, "odd", ODD)
    monkeypatch.setitem(reference.GATED, "odd", ("mixer", "ffn_exit"))
    torch.manual_seed(0)
    model = OddForCausalLM(OddConfig(attn_implementation="sdpa")).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def example() -> tuple[Family, dict[str, object], tuple[str, str]]:
    """The worked example of the documents: row, tiny config, and what the reference gates."""
    text = DOCUMENT.read_text().split("### An example")[1].split("\n### ")[0]
    row, tiny, gated = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    read = {"Family": Family}
    return eval(row, read), *(next(iter(eval(f"{{{each}}}").values())) for each in (tiny, gated))


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    row, tiny, gated = example()
    assert row.model_type not in FAMILIES, "it is in the table now: choose another example"
    monkeypatch.setitem(FAMILIES, row.model_type, row)
    monkeypatch.setitem(zoo.ZOO, row.model_type, tiny)
    monkeypatch.setitem(reference.GATED, row.model_type, gated)
    return build_lively(row.model_type)


@pytest.fixture(params=["odd", "documented"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A base model with a row for it in the table."""
    return request.getfixturevalue(request.param)


def test_the_familys_model_is_refused_without_its_row(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FAMILIES, model.config.model_type)
    with pytest.raises(UnsupportedModelError, match="a family without a row"):
        add_routers(model)


@torch.no_grad()
def test_all_keep_is_the_base_model_and_so_is_the_model_without_routers(model: nn.Module) -> None:
    expected = {name: model(**inputs.given).logits for name, inputs in BATCHES.items()}
    add_routers(model)
    for name, inputs in BATCHES.items():
        for kind in ("gated", "sparse"):
            with use_rule(model, KEEP_ALL), execution(model, kind):
                logits = model(**inputs.given).logits[inputs.real]
            # The sum of three terms may be in another order.
            torch.testing.assert_close(logits, expected[name][inputs.real], rtol=0, atol=1e-5)
        assert (model(**inputs.given).logits - expected[name])[inputs.real].abs().max() > 0.1
    remove_routers(model)
    assert torch.equal(model(**LEFT_PADDED.given).logits, expected["three-rows-left-padded"])


@torch.no_grad()
def test_all_skip_leaves_embeddings_and_head(odd: nn.Module) -> None:
    add_routers(odd)
    with use_rule(odd, Forced(default=False)):
        logits = odd(**LEFT_PADDED.given).logits
    assert torch.equal(logits, odd.head(odd.trunk.table(LEFT_PADDED.ids)))


@torch.no_grad()
def test_sparse_equals_gated_equals_the_authors_forward(model: nn.Module) -> None:
    add_routers(model)
    at = routers(model)
    for inputs in BATCHES.values():
        with execution(model, "gated"), record_routing(model) as trace:
            gated = model(**inputs.given).logits[inputs.real]
        assert 0.1 < trace.sparsity() < 0.9
        torch.testing.assert_close(model(**inputs.given).logits[inputs.real], gated, **CLOSE)
        with execution(model, "dense"):
            authors = reference.hooked_logits(
                model,
                inputs.given,
                lambda layer, module, state: reference.keeps(at[layer, module], state).float(),
            )
        torch.testing.assert_close(gated, authors[inputs.real], **CLOSE)
    assert len(routed_layers(model)) == 3
    assert len(at) == len(SITES)


@torch.no_grad()
def test_prefill_then_decode_equals_the_full_forward(model: nn.Module) -> None:
    add_routers(model)
    full = model(**LEFT_PADDED.given).logits
    logits, cache, start = [], None, 0
    for end in (6, 9, 10, 11):
        made = model(**LEFT_PADDED.chunk(start, end), past_key_values=cache, use_cache=True)
        logits.append(made.logits)
        cache, start = made.past_key_values, end
    stepwise = torch.cat(logits, dim=1)
    torch.testing.assert_close(stepwise[LEFT_PADDED.real], full[LEFT_PADDED.real], **CLOSE)


def test_the_document_explains_every_field_of_a_row() -> None:
    section = DOCUMENT.read_text().split("### The fields of a row")[1].split("\n### ")[0]
    explained = re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)
    assert explained == list(Family.__dataclass_fields__)
