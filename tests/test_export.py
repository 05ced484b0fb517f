"""A merged export is an ordinary transformers folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import skipgpt
from cases import KEEP_ALL
from runs import logits, make_checkpoint, rows, shared_checkpoint, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.checkpoint.saving import describe, save
from skipgpt.config import DataConfig
from skipgpt.errors import CheckpointError, ConfigError
from skipgpt.model.base import load_base
from skipgpt.model.state import record_routing, routing_state, use_rule
from skipgpt.model.surgery import add_routers, remove_routers, routers
from skipgpt.routing.router import set_constant
from tiny import byte_tokenizer, tiny_base


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that is only read."""
    out = tmp_path_factory.mktemp("export") / "merged"
    skipgpt.export_merged(shared_checkpoint(), out)
    skipgpt.register()
    return out


def _sparsity(model: torch.nn.Module) -> float:
    with record_routing(model) as trace:
        logits(model, rows(12))
    return trace.sparsity()


def test_the_auto_class_gives_the_loaded_checkpoints_logits(merged: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert type(model).__name__ == "SkipGPTLlamaForCausalLM"
    expected, _ = load(shared_checkpoint(), merge=True)
    assert torch.equal(logits(model), logits(expected))
    assert _sparsity(model) == _sparsity(expected) == pytest.approx(0.25, abs=0.05)


def test_the_tokenizer_comes_along(merged: Path) -> None:
    assert (
        AutoTokenizer.from_pretrained(merged)("cats").input_ids
        == byte_tokenizer()("cats").input_ids
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8])
def test_from_pretrained_turns_the_dial(sparsity: float, merged: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged, sparsity=sparsity)
    expected, _ = load(shared_checkpoint(), merge=True, sparsity=sparsity)
    assert routing_state(model).rule == routing_state(expected).rule
    assert torch.equal(logits(model), logits(expected))


def test_sparsity_zero_is_the_base_model_with_merged_lora(merged: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged, sparsity=0)
    expected, _ = load(shared_checkpoint(), merge=True)
    assert torch.equal(logits(model), logits(remove_routers(expected)))


def test_a_dial_beyond_its_end_is_refused(merged: Path) -> None:
    with pytest.raises(ConfigError, match=r"0 to 0\.95"):
        AutoModelForCausalLM.from_pretrained(merged, sparsity=1.5)


def test_the_config_tells_the_curve_of_its_unit(merged: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(merged)
    kept = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    assert "curve" not in kept
    wanted = kept["calibration"]["curves"][kept["budget"]]
    assert [list(point) for point in config.curve] == wanted
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).curve == config.curve


def test_set_sparsity_works_on_a_loaded_export(merged: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged)
    skipgpt.set_sparsity(model, 0.5)
    assert torch.equal(
        logits(model), logits(AutoModelForCausalLM.from_pretrained(merged, sparsity=0.5))
    )


def test_saving_and_loading_again_changes_nothing(merged: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged, sparsity=0.4)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert again.config.sparsity == 0.4
    weights, others = model.state_dict(), again.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_generate_equals_the_checkpoints(merged: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged)
    expected, _ = load(shared_checkpoint(), merge=True)
    prompt = rows(2, 7)
    how = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    made = model.generate(prompt, **how)
    assert made.shape == (2, 13)
    assert torch.equal(made, expected.generate(prompt, **how))


def test_a_bfloat16_load_keeps_routers_in_float32(merged: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for r in routers(model).values() for p in r.parameters()} == {torch.float32}


def test_export_in_bfloat16_writes_bfloat16(tmp_path: Path) -> None:
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "out", dtype="bfloat16")
    skipgpt.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected, _ = load(shared_checkpoint(), merge=True, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert torch.equal(logits(model), logits(expected))


def test_the_exported_dial_may_be_set_at_export(tmp_path: Path) -> None:
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "out", sparsity=0.5)
    skipgpt.register()
    assert AutoConfig.from_pretrained(tmp_path / "out").sparsity == 0.5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected, _ = load(shared_checkpoint(), merge=True, sparsity=0.5)
    assert torch.equal(logits(model), logits(expected))


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    tiny_base(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    expected, _ = make_checkpoint(tmp_path / "base", tmp_path / "checkpoint")
    skipgpt.export_merged(tmp_path / "checkpoint", tmp_path / "out")
    skipgpt.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "gemma3_text"])
def test_other_families_export_too(family: str, tmp_path: Path) -> None:
    tiny_base(family).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    expected, _ = make_checkpoint(tmp_path / "base", tmp_path / "checkpoint")
    skipgpt.export_merged(tmp_path / "checkpoint", tmp_path / "out")
    skipgpt.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.model_type == f"skipgpt_{family}"
    assert torch.equal(logits(model), logits(expected))


def test_an_uncalibrated_checkpoint_exports_without_a_dial(
    base_folder: Path, tmp_path: Path
) -> None:
    expected, _ = make_checkpoint(base_folder, tmp_path / "checkpoint", calibrated=False)
    skipgpt.export_merged(tmp_path / "checkpoint", tmp_path / "out")
    skipgpt.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), logits(expected))


def test_a_folder_that_holds_a_model_is_refused_unless_overwriting(tmp_path: Path) -> None:
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"already holds a model.*--overwrite"):
        skipgpt.export_merged(shared_checkpoint(), tmp_path / "out")
    skipgpt.export_merged(shared_checkpoint(), tmp_path / "out", sparsity=0.5, overwrite=True)
    skipgpt.register()
    assert AutoConfig.from_pretrained(tmp_path / "out").sparsity == 0.5


def test_a_hub_id_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(shared_checkpoint())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: folder)
    skipgpt.export_merged("someone/llama-25", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_export_leaves_the_checkpoint_alone(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shared_checkpoint(), tmp_path / "checkpoint"))
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    skipgpt.export_merged(copy, tmp_path / "out")
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    assert read_info(copy) == read_info(shared_checkpoint())


@pytest.mark.parametrize("remote", [True, False], ids=["by-its-own-code", "registered"])
def test_a_loaded_export_that_is_saved_again_has_the_code_it_names(
    remote: bool, merged: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for source, out in ((merged, one), (one, two)):
        AutoModelForCausalLM.from_pretrained(source, trust_remote_code=remote).save_pretrained(out)
    auto_map = AutoConfig.from_pretrained(two).auto_map
    assert auto_map.keys() == {"AutoConfig", "AutoModelForCausalLM"}
    assert {path.name for path in two.glob("*.py")} == {
        f"{name.split('.')[0]}.py" for name in auto_map.values()
    }
    found = AutoModelForCausalLM.from_pretrained(two, trust_remote_code=True).eval()
    wanted = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert torch.equal(logits(found), logits(wanted))


def test_a_config_that_is_saved_by_itself_has_the_code_it_names(
    merged: Path, tmp_path: Path
) -> None:
    AutoConfig.from_pretrained(merged).save_pretrained(tmp_path / "config")
    assert (tmp_path / "config" / "modeling_skipgpt.py").read_text() == (
        merged / "modeling_skipgpt.py"
    ).read_text()


def test_a_head_that_the_config_calls_tied_and_the_file_does_not_is_exported(
    tmp_path: Path,
) -> None:
    base = tiny_base(tie_word_embeddings=True, initializer_range=0.2)
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model, _ = load_base(str(tmp_path / "base"))
    add_routers(model)
    for site, router in routers(model).items():
        set_constant(router, -1.0 if site.layer == 1 else 1.0)
    save(model, tmp_path / "checkpoint", describe(model, str(tmp_path / "base")))
    skipgpt.export_merged(tmp_path / "checkpoint", tmp_path / "merged")
    merged, _ = load(tmp_path / "merged")
    with use_rule(merged, KEEP_ALL):
        torch.testing.assert_close(logits(merged), logits(plain.eval()))
    write_documents(tmp_path)
    small = skipgpt.export_static(
        tmp_path / "checkpoint",
        tmp_path / "small",
        data=[str(tmp_path / "stories.jsonl")],
        cutting=DataConfig(
            block_size=16, held_out=0.3, calibration_tokens=128, evaluation_tokens=128
        ),
    )
    static = AutoModelForCausalLM.from_pretrained(small.out)
    assert torch.equal(static.lm_head.weight, tensors["lm_head.weight"])
