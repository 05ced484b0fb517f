"""A checkpoint brings the same model back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import skipgpt
from runs import logits, make_checkpoint, shared_checkpoint
from skipgpt.checkpoint.folder import push_to_hub, read_info
from skipgpt.checkpoint.info import model_card
from skipgpt.checkpoint.loading import load
from skipgpt.errors import ConfigError, SkipGPTError, UnsupportedModelError
from skipgpt.model.state import execution, record_routing, routing_state
from skipgpt.model.surgery import remove_routers, routers
from tiny import tiny_base

# Folding B A into W reorders products; three layers of lively weights make 2e-5 of it (measured).
MERGED = {"rtol": 0.0, "atol": 2e-4}


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

    card = model_card(dataclasses.replace(info, sparsity={"module": 0.2512, "flops": 0.2}))
    assert "module 25.1%, flops 20.0%" in card
