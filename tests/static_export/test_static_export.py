"""`export --static`: from a checkpoint to an ordinary model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import skipgpt
from cases import CLOSE
from removals import static_loss
from runs import logits, rows, stopping_at
from skipgpt.checkpoint.loading import load
from skipgpt.config import LoraStage
from skipgpt.data import load_blocks
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    StoppedError,
)
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.model.base import load_base
from skipgpt.model.state import execution, use_rule
from skipgpt.model.surgery import add_routers, routers
from skipgpt.routing.decision import Forced, Site
from static_exports import A1, A2, CUTTING, M0, M1, export, make
from tiny import tiny_base


def forced(checkpoint: Path, removed: tuple[Site, ...]) -> Any:
    """The checkpoint's model as a context in which the sites never run."""
    model, _ = load(checkpoint, merge=True)
    return model, use_rule(model, Forced.without(list(removed)))


def test_the_export_is_the_routed_model_without_what_was_removed(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1, A2], lora=True)
    result = export(checkpoint)
    assert result.removed == (M0, A1)
    assert result.kept_anyway == (A2,)
    assert result.layers == ((0, 1), (2, 2))
    assert (result.layers_before, result.layers_after) == (3, 2)

    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert type(static).__name__ == "LlamaForCausalLM"
    assert [layer.self_attn.layer_idx for layer in static.model.layers] == [0, 1]
    assert static.num_parameters() == result.parameters_after < result.parameters_before
    assert result.parameters_before == tiny_base().num_parameters()
    model, removed = forced(checkpoint, result.removed)
    with removed:
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)
    assert AutoTokenizer.from_pretrained(result.out)("cats").input_ids


def test_it_generates_what_the_routed_model_generates_without_the_modules(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    result = export(checkpoint)
    static = AutoModelForCausalLM.from_pretrained(result.out)
    prompt = rows(2, 7)
    how = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    model, removed = forced(checkpoint, result.removed)
    with removed:
        expected = model.generate(prompt, **how)
    assert torch.equal(static.generate(prompt, **how), expected)


def test_losses_are_those_of_held_out_text(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1], lora=True)
    result = export(checkpoint)
    model, tokenizer = load(checkpoint, merge=True)
    blocks = subsample_rows(
        load_blocks([str(tmp_path / "stories.jsonl")], tokenizer, CUTTING).held_out, 128
    )
    with execution(model, "dense"):
        dense = perplexity(model, blocks)
    expected = {
        "dense": dense.nll_per_token,
        "routed": perplexity(model, blocks).nll_per_token,
        "static": static_loss(model, blocks, [M0, A1]),
    }
    assert result.losses == pytest.approx(expected, rel=1e-6)
    assert list(result.losses) == list(expected)
    assert len(set(result.losses.values())) == 3
    assert result.tokens == dense.tokens


def test_the_rest_is_healed_if_so_wished(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1], lora=True)
    heal = LoraStage(steps=12, learning_rate=1e-2, rank=4)
    data = [str(tmp_path / "stories.jsonl")]
    plain = export(checkpoint)
    torch.manual_seed(0)
    result = skipgpt.export_static(
        checkpoint, tmp_path / "healed", data=data, cutting=CUTTING, heal=heal
    )
    assert (result.removed, result.layers) == (plain.removed, plain.layers)
    assert result.losses["static"] == pytest.approx(plain.losses["static"], rel=1e-6)
    assert result.losses["healed"] < result.losses["static"] - 0.01
    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert static.num_parameters() == plain.parameters_after
    blocks = load_blocks(data, AutoTokenizer.from_pretrained(result.out), CUTTING).held_out
    measured = static(subsample_rows(blocks, 128), labels=subsample_rows(blocks, 128)).loss.item()
    assert result.losses["healed"] == pytest.approx(measured, rel=1e-5)


def test_healing_follows_its_seed_and_is_written_down(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    heal, losses = LoraStage(steps=2, rank=4), []
    for seed in (0, 0, 1):
        out = tmp_path / f"healed-{len(losses)}"
        result = skipgpt.export_static(
            checkpoint,
            out,
            data=[str(tmp_path / "stories.jsonl")],
            cutting=CUTTING,
            heal=heal,
            seed=seed,
        )
        losses.append(result.losses["healed"])
        assert json.loads((out / "static_export.json").read_text())["heal"]["steps"] == 2
    assert losses[0] == losses[1] != losses[2]


def test_a_stop_while_healing_writes_nothing(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    with stopping_at(1, "lora"), pytest.raises(StoppedError, match="nothing was written"):
        skipgpt.export_static(
            checkpoint,
            tmp_path / "healed",
            data=[str(tmp_path / "stories.jsonl")],
            cutting=CUTTING,
            heal=LoraStage(steps=2, rank=4),
        )
    assert list((tmp_path / "healed").glob("*")) == []


def test_a_file_in_the_place_of_the_export_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M0, A1])
    (tmp_path / "small").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a folder"):
        export(checkpoint)
    assert (tmp_path / "small").read_text() == "mine"


def test_an_mlp_that_no_token_runs_takes_an_attention_along(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, [M1])
    with pytest.raises(ConfigError, match="an attention and an MLP side by side"):
        export(checkpoint)
    result = export(checkpoint, keep_rate=0.3)
    attention = ({A1, A2} & set(result.removed)).pop()
    assert set(result.removed) == {M1, attention}
    attn, mlp = result.keep_rates[f"{attention.layer}.attn"], result.keep_rates["1.mlp"]
    assert mlp == 0
    layer = tiny_base().model.layers[0]
    sizes = [
        sum(p.numel() for part in (module, norm) for p in part.parameters())
        for module, norm in (
            (layer.self_attn, layer.input_layernorm),
            (layer.mlp, layer.post_attention_layernorm),
        )
    ]
    together = attn * sizes[0] / sum(sizes)
    assert together < 0.3 < attn
    # The others have more, or go with what has gone already.
    with pytest.raises(ConfigError, match=f"{together:.1%}"):
        export(checkpoint, keep_rate=together, overwrite=True)


def test_the_folder_says_what_was_removed(tmp_path: Path) -> None:
    result = export(make(tmp_path, [M0, A1]))
    record = json.loads((tmp_path / "small" / "static_export.json").read_text())
    assert record == result.to_dict()
    assert record["removed"] == ["0.mlp", "1.attn"]
    assert record["layers"] == [[0, 1], [2, 2]]


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    base = tiny_base(tie_word_embeddings=True, initializer_range=0.2)
    checkpoint = make(tmp_path, [A1, M1], base)
    result = export(checkpoint)
    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert static.lm_head.weight is static.model.embed_tokens.weight
    model, removed = forced(checkpoint, result.removed)
    with removed:
        torch.testing.assert_close(logits(static), logits(model), **CLOSE)


def test_bfloat16_is_written_as_bfloat16(tmp_path: Path) -> None:
    result = export(make(tmp_path, [M0, A1]), dtype="bfloat16")
    static = AutoModelForCausalLM.from_pretrained(result.out)
    assert {p.dtype for p in static.parameters()} == {torch.bfloat16}


def test_the_result_is_a_base_that_routers_fit_into(tmp_path: Path) -> None:
    result = export(make(tmp_path, [M0, A1]))
    model, _ = load_base(result.out)
    assert len(routers(add_routers(model))) == 4
