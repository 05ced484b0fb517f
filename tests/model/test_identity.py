"""The same weights with other settings are another model, and that is said field by field."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zoo
from runs import logits, run, tiny_config
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.model.base import load_base
from skipgpt.model.loading.fingerprint import fingerprint
from skipgpt.model.loading.identity import digest_of_settings, refuse_other_settings, settings_of
from skipgpt.model.surgery import add_routers

Values = dict[str, Any]


def _edit(file: Path, change: Callable[[Values], Values]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.fixture
def checkpoint(base_folder: Path, tmp_path: Path) -> Path:
    """Untrained, beside its base; with what its tokenizer was."""
    model, tokenizer = load_base(str(base_folder))
    add_routers(model)
    info = describe(model, str(base_folder), tokenizer=tokenizer)
    save(model, tmp_path / "checkpoint", info)
    return tmp_path / "checkpoint"


def _rope(values: Values) -> Values:
    return values | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}


CHANGES: dict[str, tuple[Callable[[Values], Values], str]] = {
    "rope": (_rope, "rope_parameters.rope_theta 500000.0, was 10000.0"),
    "norm": (lambda v: v | {"rms_norm_eps": 0.01}, "rms_norm_eps 0.01, was 1e-06"),
    "activation": (lambda v: v | {"hidden_act": "gelu"}, 'hidden_act "gelu", was "silu"'),
    "scaled rope": (
        lambda v: v | {"rope_parameters": zoo._LLAMA3["rope_parameters"]},
        'rope_parameters.rope_type "llama3", was "default"',
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_base_of_the_same_weights_and_another_config_is_refused(
    change: str, checkpoint: Path, base_folder: Path
) -> None:
    alter, words = CHANGES[change]
    load(checkpoint)
    before = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    _edit(base_folder / "config.json", alter)
    after = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    assert not torch.allclose(logits(after), logits(before), atol=1e-4)  # it is another model
    with pytest.raises(CheckpointError, match="the same weights and other settings") as caught:
        load(checkpoint)
    assert words in caught.value.got
    values = settings_of(after, AutoTokenizer.from_pretrained(base_folder))
    _edit(checkpoint / "skipgpt_config.json", lambda v: v | {"base_settings": values})  # its advice
    assert torch.isfinite(logits(load(checkpoint)[0])).all()


def test_another_attention_pattern_is_refused(tmp_path: Path) -> None:
    then = zoo.build("qwen2", **{"layer_types": ["full_attention"] * 3})
    now = zoo.build("qwen2")
    with pytest.raises(
        CheckpointError, match=r'layer_types \["sliding_attention", .*, was \["full'
    ):
        refuse_other_settings(settings_of(then), settings_of(now), "loading")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.add_tokens(["<new>"]), r"vocabulary \"258 tokens, \w+\", was \"257 tokens"),
        (lambda t: setattr(t, "bos_token", "a"), 'bos_token "a", was "<|endoftext|>"'),
    ],
)
def test_another_tokenizer_is_refused(
    change: Callable[[Any], object], words: str, checkpoint: Path, base_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    change(tokenizer)
    tokenizer.save_pretrained(base_folder)
    with pytest.raises(CheckpointError, match=words.replace("|", r"\|")):
        load(checkpoint)


def test_other_rules_of_the_same_vocabulary_are_refused(
    checkpoint: Path, base_folder: Path
) -> None:
    """The vocabulary, special tokens and the sample text may all stay the same."""
    before = AutoTokenizer.from_pretrained(base_folder)
    values = json.loads(before.backend_tokenizer.to_str())
    values["normalizer"] = {"type": "Replace", "pattern": {"String": "zebra"}, "content": "horse"}
    (base_folder / "tokenizer.json").write_text(json.dumps(values))
    after = AutoTokenizer.from_pretrained(base_folder)
    assert after("a zebra")["input_ids"] != before("a zebra")["input_ids"]
    with pytest.raises(CheckpointError, match=r"tokenizer\.rules"):
        load(checkpoint)


@pytest.mark.parametrize("which", ["one row", "all columns but the first"])
def test_a_base_with_few_other_values_is_refused(
    which: str, checkpoint: Path, base_folder: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        if which == "one row":
            model.get_input_embeddings().weight[5, 1:] += 1
        else:
            model.model.layers[0].mlp.down_proj.weight[:, 1:] += 1
    model.save_pretrained(base_folder)
    with pytest.raises(CheckpointError, match="with fingerprint"):
        load(checkpoint)


def test_a_buffer_that_routes_to_experts_is_part_of_the_fingerprint() -> None:
    model = zoo.build("deepseek_v3")
    before = fingerprint(model)
    name, bias = next(each for each in model.named_buffers() if "correction_bias" in each[0])
    assert name in model.state_dict()
    bias += 1
    assert fingerprint(model) != before


def test_a_fingerprint_of_samples_alone_is_compared_by_them(checkpoint: Path) -> None:
    """As version 0.1 wrote it."""
    file = checkpoint / "skipgpt_config.json"
    samples = read_info(checkpoint).fingerprint.partition("-")[0]
    _edit(file, lambda v: v | {"fingerprint": samples})
    load(checkpoint)
    _edit(file, lambda v: v | {"fingerprint": samples[::-1]})
    with pytest.raises(CheckpointError, match="with fingerprint"):
        load(checkpoint)


def test_what_decides_no_logit_is_warned_of(
    checkpoint: Path, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = logits(load(checkpoint)[0])
    _edit(base_folder / "config.json", lambda v: v | {"eos_token_id": 5, "use_cache": False})
    with caplog.at_level(logging.WARNING, "skipgpt"):
        found, _ = load(checkpoint)
    assert torch.equal(logits(found), wanted)
    assert "eos_token_id 5, was 0" in caplog.text
    assert "use_cache" not in caplog.text


def test_what_another_release_adds_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    then = {"transformers_version": "5.16.1", "a": 1}
    with caplog.at_level(logging.WARNING, "skipgpt"):
        refuse_other_settings(then, {"transformers_version": "5.23.0", "a": 1, "b": 2}, "loading")
    assert "b 2, was absent" in caplog.text
    with pytest.raises(CheckpointError, match="a 2, was 1"):
        refuse_other_settings(then, {"transformers_version": "5.23.0", "a": 2}, "loading")
    assert digest_of_settings(then) == digest_of_settings({"a": 1})


def test_a_checkpoint_without_settings_loads_as_before(checkpoint: Path, base_folder: Path) -> None:
    def older(values: Values) -> Values:
        return {key: value for key, value in values.items() if key != "base_settings"}

    _edit(checkpoint / "skipgpt_config.json", older)
    assert read_info(checkpoint).base_settings == {}
    _edit(base_folder / "config.json", _rope)
    load(checkpoint)


def test_training_records_the_settings_and_a_resumed_run_holds_to_them(
    base_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = tiny_config("default", stages="router", router_stage__steps=1)
    run(base_folder, out, config)
    model, tokenizer = load_base(str(base_folder))
    assert read_info(out).base_settings == settings_of(model, tokenizer)
    _edit(base_folder / "config.json", _rope)
    with pytest.raises((CheckpointError, ConfigError), match=r"rope_theta .*was"):
        run(base_folder, out, config, resume=True)
