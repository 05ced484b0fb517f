"""A checkpoint that is damaged, or does not fit its base, is refused with why."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runs import logits, make_checkpoint
from skipgpt.checkpoint.folder import read_info, verify_files
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import save
from skipgpt.errors import CheckpointError, UnsupportedModelError
from tiny import byte_tokenizer, tiny_base


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "skipgpt_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not Ellipsis}))


def _replace_routers(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other routers under a digest that is right."""
    import hashlib

    save_file(tensors, folder / "routers.safetensors")
    digest = hashlib.sha256((folder / "routers.safetensors").read_bytes()).hexdigest()
    files = json.loads((folder / "skipgpt_config.json").read_text())["files"]
    _edit_config(folder, files=files | {"routers.safetensors": digest})


def test_another_base_model_is_refused_with_both_fingerprints(
    checkpoint: Path, tmp_path: Path
) -> None:
    tiny_base(seed=1).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint, base=str(tmp_path / "other"))
    found = re.findall(r"fingerprint ([0-9a-f]{16}-[0-9a-f]{16})", str(caught.value))
    assert len(set(found)) == 2
    assert read_info(checkpoint).fingerprint in found
    assert str(tmp_path / "other") in str(caught.value)
    assert "--base" in caught.value.todo


def test_a_base_of_a_family_without_a_row_is_refused(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    small = {"vocab_size": 257, "hidden_size": 32, "ffn_dim": 32, "word_embed_proj_dim": 32}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    OPTForCausalLM(OPTConfig(**small, **ends)).save_pretrained(tmp_path / "opt")
    byte_tokenizer().save_pretrained(tmp_path / "opt")
    with pytest.raises(UnsupportedModelError, match="'opt': got a family without a row") as caught:
        make_checkpoint(tmp_path / "opt", tmp_path / "out")
    assert "llama" in caught.value.expected


def test_missing_extra_and_misshaped_routers_are_named_in_one_message(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "routers.safetensors")
    del tensors["layers.0.attn_router.weight"]
    tensors["layers.9.mlp_router.bias"] = torch.zeros(2)
    tensors["layers.1.mlp_router.weight"] = torch.zeros(2, 5)
    _replace_routers(checkpoint, tensors)
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert caught.value.got == (
        "missing layers.0.attn_router.weight; unexpected layers.9.mlp_router.bias; "
        "layers.1.mlp_router.weight of shape [2, 5], not [2, 32]"
    )
    assert "12 router tensors" in caught.value.expected


@pytest.mark.parametrize("name", ["routers.safetensors", "lora/adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_file_is_named(name: str, damage: str, checkpoint: Path) -> None:
    path = checkpoint / name
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert name in caught.value.got
    assert ("missing" if damage == "missing" else "damaged") in caught.value.got


def test_every_damaged_file_is_named_in_one_message(checkpoint: Path) -> None:
    (checkpoint / "routers.safetensors").write_bytes(b"")
    (checkpoint / "lora" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        verify_files(checkpoint, read_info(checkpoint))
    assert "lora/adapter_config.json is missing" in caught.value.got
    assert "routers.safetensors is damaged or was changed (0 bytes)" in caught.value.got


def test_routers_that_are_no_safetensors_are_refused_though_their_digest_is_right(
    checkpoint: Path,
) -> None:
    import hashlib

    (checkpoint / "routers.safetensors").write_bytes(b"not tensors")
    files = json.loads((checkpoint / "skipgpt_config.json").read_text())["files"]
    files["routers.safetensors"] = hashlib.sha256(b"not tensors").hexdigest()
    _edit_config(checkpoint, files=files)
    with pytest.raises(CheckpointError, match=r"reading .*routers\.safetensors"):
        load(checkpoint)


def test_a_newer_format_asks_for_an_upgrade(checkpoint: Path) -> None:
    _edit_config(checkpoint, format_version=99, router={"kind": "from the future"})
    with pytest.raises(CheckpointError, match="format version 99; expected 1 to 2; upgrade"):
        read_info(checkpoint)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"text"', "3", "{}", '{"format_version": 1}', b"\xff\xfe\x00"],
    ids=str,
)
def test_a_config_that_is_no_config_is_called_damaged(text: str | bytes, checkpoint: Path) -> None:
    data = text.encode() if isinstance(text, str) else text
    (checkpoint / "skipgpt_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"reading the checkpoint .*damaged"):
        read_info(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"router": 5},
        {"router": {"head": "cubic"}},
        {"router": {"depth": 2}},
        {"curves": {"modules": [[0.0]]}},
        {"curves": {"modules": [1, 2]}},
        {"curves": {"modules": 7}},
        {"curves": {"modules": [["a", "b"]]}},
        {"curves": {"joules": [[0.0, None]]}},
        {"curves": 7},
        {"budget": "joules"},
        {"timed": {"phase": "warm-up"}},
        {"curve": [[0.0, None]]},
        {"files": 5},
        {"files": ["routers.safetensors"]},
        {"sparsity": "a quarter"},
        {"keep": {"attn": [0.5]}},
        {"keep": {"attn": [0.5], "mlp": [0.5, 0.5]}},
        {"keep": {"attn": [0.5], "mlp": [1.5]}},
        {"keep": {"attn": [0.5], "head": [0.5]}},
        {"keep_at": [[1.0, 0.5]]},
        {"keep_at": [[1.0, 0.5, 0.5], [2.0, 0.5, 0.5, 0.5, 0.5]]},
        {"keep_at": [[1.0, 0.5, 1.5]]},
        {"stages": 4},
        {"target_sparsity": "many"},
        {"target_sparsity": 7},
        {"surprise": 1},
        {"fingerprint": ...},
        {"base": ...},
    ],
    ids=str,
)
def test_a_config_with_a_damaged_field_is_called_damaged(
    changes: dict[str, Any], checkpoint: Path
) -> None:
    _edit_config(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=r"reading the checkpoint .*damaged"):
        read_info(checkpoint)


def test_a_checkpoint_from_before_curves_said_what_they_were_measured_from_loads(
    checkpoint: Path,
) -> None:
    expected = logits(load(checkpoint)[0])
    _edit_config(checkpoint, keep_at=...)
    assert read_info(checkpoint).keep_at == ()
    assert torch.equal(logits(load(checkpoint)[0]), expected)


def test_a_checkpoint_from_before_keep_rates_were_written_loads(checkpoint: Path) -> None:
    expected = logits(load(checkpoint)[0])
    _edit_config(checkpoint, keep=...)
    assert read_info(checkpoint).keep == {}
    assert torch.equal(logits(load(checkpoint)[0]), expected)


def test_keep_rates_come_back_as_they_were_saved(base_folder: Path, tmp_path: Path) -> None:
    model, info = make_checkpoint(base_folder, tmp_path / "out")
    info = dataclasses.replace(info, keep={"attn": (0.0, 0.5, 1.0), "mlp": (1.0, 0.25, 0.125)})
    save(model, tmp_path / "out", info, overwrite=True)
    assert read_info(tmp_path / "out").keep == info.keep


@pytest.mark.parametrize("name", ["nowhere", "nobody/nothing"])
def test_a_folder_without_a_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(CheckpointError, match="expected a folder made by `skipgpt train`"):
        load(tmp_path / "nowhere" if name == "nowhere" else name)


def test_a_hub_id_is_downloaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name: asked.append(name) or str(checkpoint)
    )
    model, _ = load("someone/llama-25")
    assert asked == ["someone/llama-25"]
    assert torch.equal(logits(model), logits(load(checkpoint)[0]))
    assert read_info("someone/llama-25") == read_info(checkpoint)
