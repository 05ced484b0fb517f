"""Saving and loading: the same model comes back, or one message says why not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import skipgpt
from conftest import byte_tokenizer, tiny_base
from runs import logits, make_checkpoint, shared_checkpoint
from skipgpt.checkpoint.folder import push_to_hub, read_info, verify_files
from skipgpt.checkpoint.info import CheckpointInfo, has_adapter, model_card
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import save
from skipgpt.errors import CheckpointError, ConfigError, SkipGPTError, UnsupportedModelError
from skipgpt.model.state import execution, record_routing, routing_state
from skipgpt.model.surgery import remove_routers, routers

# Folding B A into W reorders products; three layers of lively weights make 2e-5 of it (measured).
MERGED = {"rtol": 0.0, "atol": 2e-4}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(shared_checkpoint(), tmp_path / "checkpoint"))


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


# The same model comes back.


@pytest.mark.parametrize("lora", [False, True], ids=["router", "router+lora"])
def test_a_loaded_checkpoint_gives_the_saved_models_logits(
    lora: bool, base_folder: Path, tmp_path: Path
) -> None:
    model, info = make_checkpoint(base_folder, tmp_path / "out", lora=lora)
    loaded, tokenizer = load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))
    assert read_info(tmp_path / "out") == info
    assert tokenizer.decode(tokenizer("cats").input_ids) == "cats"
    with record_routing(loaded) as trace:
        logits(loaded)
    assert trace.sparsity() == pytest.approx(0.25, abs=0.1)


def test_a_model_that_transformers_loaded_is_saved_without_more_said(
    base_folder: Path, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    model = skipgpt.add_routers(plain)
    torch.manual_seed(5)
    for router in routers(model).values():
        torch.nn.init.normal_(router.weight)
    skipgpt.save(model, tmp_path / "out")
    loaded, _ = skipgpt.load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model.eval()))
    plain.config._name_or_path = ""
    with pytest.raises(ConfigError, match="pass base=") as caught:
        skipgpt.save(model, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    skipgpt.save(model, tmp_path / "again", base=str(base_folder))
    assert caught.value.todo


def test_what_a_checkpoint_says_is_kept_when_it_is_loaded_and_saved_again(tmp_path: Path) -> None:
    first = shared_checkpoint()
    model, _ = skipgpt.load(first)
    skipgpt.save(model, tmp_path / "again")
    before, after = read_info(first), read_info(tmp_path / "again")
    for name in ("base", "fingerprint", "stages", "recipe", "target_sparsity", "budget", "curves"):
        assert getattr(after, name) == getattr(before, name), name
    again, _ = skipgpt.load(tmp_path / "again")
    assert routing_state(again).rule == routing_state(model).rule
    assert torch.equal(logits(again), logits(model))


def test_only_what_can_be_loaded_again_is_saved(base_folder: Path, tmp_path: Path) -> None:
    make_checkpoint(base_folder, tmp_path / "healed", lora=True)
    merged, _ = skipgpt.load(tmp_path / "healed", merge=True)
    with pytest.raises(ConfigError, match=r"base weights with fingerprint .*export_merged"):
        skipgpt.save(merged, tmp_path / "out")
    skipgpt.export_merged(tmp_path / "healed", tmp_path / "export")
    exported, _ = skipgpt.load(tmp_path / "export")
    with pytest.raises(ConfigError, match=r"call model\.save_pretrained"):
        skipgpt.save(exported, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merging_lora_keeps_the_logits_and_leaves_no_adapter() -> None:
    whole, _ = load(shared_checkpoint())
    merged, _ = load(shared_checkpoint(), merge=True)
    torch.testing.assert_close(logits(merged), logits(whole), **MERGED)
    with whole.disable_adapter():
        assert (logits(merged) - logits(whole)).abs().max() > 1e-2
    assert not any("lora_" in name for name, _ in merged.named_parameters())


def test_sparsity_zero_is_exactly_the_base_model(base_folder: Path, tmp_path: Path) -> None:
    make_checkpoint(base_folder, tmp_path / "out")
    model, _ = load(tmp_path / "out", sparsity=0)
    kept = logits(model)
    assert torch.equal(kept, logits(remove_routers(model)))


def test_the_dial_chosen_at_load_is_what_runs() -> None:
    seen = []
    for sparsity in (0.1, 0.5):
        model, _ = load(shared_checkpoint(), sparsity=sparsity, merge=True)
        with record_routing(model) as trace:
            logits(model)
        seen.append(trace.sparsity())
    assert seen == pytest.approx([0.1, 0.5], abs=0.08)


def test_peft_alone_loads_the_adapter_onto_the_plain_base_model() -> None:
    folder = shared_checkpoint()
    base = tiny_base(initializer_range=0.2)
    alone = PeftModel.from_pretrained(base, folder / "lora").eval()
    model, _ = load(folder)
    with execution(model, "dense"):
        assert torch.equal(logits(alone), logits(model))


def test_an_adapter_loads_frozen_unless_it_is_to_train_further() -> None:
    frozen, _ = load(shared_checkpoint())
    assert not any(p.requires_grad for n, p in frozen.named_parameters() if "lora_" in n)
    trainable, _ = load(shared_checkpoint(), trainable=True)
    assert all(p.requires_grad for n, p in trainable.named_parameters() if "lora_" in n)


def test_routers_stay_float32_over_a_bfloat16_base() -> None:
    model, _ = load(shared_checkpoint(), dtype="bfloat16")
    assert {p.dtype for router in routers(model).values() for p in router.parameters()} == {
        torch.float32
    }
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16


def test_a_checkpoint_can_be_moved_and_its_base_too(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, info = make_checkpoint(Path("base"), tmp_path / "out")
    assert info.base == str(base_folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere" / "out")
    base = shutil.move(base_folder, tmp_path / "elsewhere" / "base")
    with pytest.raises(UnsupportedModelError, match="loading the base model"):
        load(moved)
    loaded, _ = load(moved, base=str(base))
    assert torch.equal(logits(loaded), logits(model))


def test_an_uncalibrated_checkpoint_loads_and_has_no_dial(
    base_folder: Path, tmp_path: Path
) -> None:
    model, info = make_checkpoint(base_folder, tmp_path / "out", calibrated=False)
    assert info.curve is None
    assert torch.equal(logits(load(tmp_path / "out")[0]), logits(model))
    with pytest.raises(ConfigError, match="never calibrated"):
        load(tmp_path / "out", sparsity=0.3)


def test_a_checkpoint_is_small_and_only_safetensors_and_text() -> None:
    names = {str(p.relative_to(shared_checkpoint())) for p in shared_checkpoint().rglob("*.*")}
    assert names == {
        "skipgpt_config.json",
        "routers.safetensors",
        "README.md",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
    }
    assert sorted(load_file(shared_checkpoint() / "routers.safetensors"))[:2] == [
        "layers.0.attn_router.bias",
        "layers.0.attn_router.weight",
    ]


def test_the_config_is_strict_json_with_the_fields_of_the_design() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (shared_checkpoint() / "skipgpt_config.json").read_text()
    values = json.loads(text, parse_constant=refuse)
    assert {"format_version", "base", "revision", "fingerprint", "router", "recipe"} <= set(values)
    assert {"stages", "curves", "budget", "target_sparsity", "sparsity"} <= set(values)
    assert values["router"]["kv"] == "dense"
    assert values["curves"]["modules"][0] == values["curves"]["flops"][0] == [0.0, None]


# What does not fit is refused.


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


# Writing leaves the old checkpoint or the new one.


def test_a_folder_that_holds_a_checkpoint_is_refused_unless_overwriting(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"already holds a checkpoint.*--overwrite"):
        make_checkpoint(base_folder, tmp_path / "out")
    make_checkpoint(base_folder, tmp_path / "out", overwrite=True)


def test_routers_alone_over_routers_and_lora_leave_no_lora(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out", lora=True)
    model, info = make_checkpoint(base_folder, tmp_path / "out", overwrite=True)
    assert not has_adapter(info)
    assert not (tmp_path / "out" / "lora").exists()
    loaded, _ = load(tmp_path / "out")
    assert not hasattr(loaded, "peft_config")
    assert torch.equal(logits(loaded), logits(model))


def test_an_adapter_folder_that_the_config_does_not_list_is_ignored(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out")
    shutil.copytree(shared_checkpoint() / "lora", tmp_path / "out" / "lora")
    assert not hasattr(load(tmp_path / "out")[0], "peft_config")


def _other_model(folder: Path) -> tuple[torch.nn.Module, CheckpointInfo]:
    model, _ = load(folder)
    for router in routers(model).values():
        router.weight.data.neg_()
    return model, read_info(folder)


def _holds_what_it_held(folder: Path, expected: torch.Tensor, names: set[str]) -> None:
    assert torch.equal(logits(load(folder)[0]), expected)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*")} == names


def test_a_disk_that_is_full_while_tensors_are_written_leaves_the_old_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(load(checkpoint)[0])
    names = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*")}
    model, info = _other_model(checkpoint)

    def full(tensors: Any, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*room on the disk"):
            save(model, checkpoint, info, overwrite=True)
    _holds_what_it_held(checkpoint, expected, names)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_rename_that_fails_leaves_the_old_checkpoint(
    number: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(load(checkpoint)[0])
    names = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*")}
    model, info = _other_model(checkpoint)
    replace, calls = os.replace, []

    def failing(source: Any, target: Any) -> None:
        if "safetensors" in str(target) or "json" in str(target) or "README" in str(target):
            calls.append(target)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", failing)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(model, checkpoint, info, overwrite=True)
    assert len(calls) >= number
    _holds_what_it_held(checkpoint, expected, names)


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(checkpoint: Path) -> None:
    model, info = _other_model(checkpoint)
    with pytest.raises(CheckpointError, match="writing to"):
        save(model, checkpoint / "README.md" / "below a file", info)


# What others see.


class _Hub:
    """What was asked of huggingface_hub.HfApi."""

    created: list[tuple[str, bool]]
    uploaded: list[dict[str, Any]]

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.created.append((repo_id, private))

    def upload_folder(self, **arguments: Any) -> str:
        self.uploaded.append(arguments)
        return f"https://huggingface.co/{arguments['repo_id']}/commit/1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> _Hub:
    _Hub.created, _Hub.uploaded = [], []
    monkeypatch.setattr("huggingface_hub.HfApi", _Hub)
    return _Hub()


def test_pushing_uploads_the_checkpoint_without_its_resume_state(
    checkpoint: Path, hub: _Hub
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    (checkpoint / "trainer" / "router" / "checkpoint-2").mkdir(parents=True)
    (checkpoint / "trainer" / "router" / "checkpoint-2" / "optimizer.pt").write_bytes(b"state")
    where = skipgpt.push_to_hub(checkpoint, "someone/llama-25", private=True)
    assert where == "https://huggingface.co/someone/llama-25/commit/1"
    assert hub.created == [("someone/llama-25", True)]
    (call,) = hub.uploaded
    paths = [str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file()]
    sent = filter_repo_objects(paths, ignore_patterns=call["ignore_patterns"])
    assert sorted(sent) == [
        "README.md",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
        "routers.safetensors",
        "skipgpt_config.json",
    ]


def test_a_damaged_checkpoint_is_not_pushed(checkpoint: Path, hub: _Hub) -> None:
    (checkpoint / "routers.safetensors").write_bytes(b"")
    with pytest.raises(SkipGPTError, match="damaged"):
        push_to_hub(checkpoint, "someone/llama-25")
    assert hub.created == []


def test_the_model_card_says_what_it_is_and_how_to_load_it() -> None:
    info = read_info(shared_checkpoint())
    text = (shared_checkpoint() / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: skipgpt\n")
    assert f"base_model: {info.base}\n" in text
    for words in ("router, lora", "target sparsity 25%", info.fingerprint, "skipgpt.load("):
        assert words in text


def test_the_model_card_names_the_measured_sparsities() -> None:
    info = read_info(shared_checkpoint())
    assert "not measured" in model_card(info)
    import dataclasses

    card = model_card(dataclasses.replace(info, sparsity={"module": 0.2512, "flops": 0.2}))
    assert "module 25.1%, flops 20.0%" in card
