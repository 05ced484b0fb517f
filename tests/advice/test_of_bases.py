"""Errors of base models in Python: each is caused, and its advice followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import skipgpt
from following import advised
from gguf_files import gguf_llama, write_gguf
from made_world import edit, world
from runs import make_checkpoint, run, stopping_at, tiny_config, write_documents
from skipgpt.baselines.weights import refuse_quantized
from skipgpt.errors import StoppedError
from skipgpt.model.base import base_config, load_base
from skipgpt.model.surgery import add_routers
from tiny import byte_tokenizer, tiny_base

FOLDER, GGUF = "model/loading/folder.py", "model/loading/gguf"
WHOLE = "load the model from its transformers folder"
SIZES: dict[str, object] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_an_adapter_is_merged_into_its_base(tmp_path: Path) -> None:
    model, _ = load_base(str(world() / "base"))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "a"
    )
    advice = "merge it into its base with PEFT, and save that with its tokenizer"
    with advised(FOLDER, advice):
        load_base(str(tmp_path / "a"))
    merged = PeftModel.from_pretrained(load_base(str(world() / "base"))[0], tmp_path / "a")
    load_base(saved(merged.merge_and_unload(), tmp_path / "merged"))


def test_a_model_with_code_beside_it_is_replaced_by_a_listed_one(tmp_path: Path) -> None:
    saved(tiny_base(), tmp_path / "own")
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit(tmp_path / "own" / "config.json", model_type="madeup", auto_map=code)
    with advised("model/base.py", "see `skipgpt families` for the models that can be routed"):
        load_base(str(tmp_path / "own"))
    add_routers(load_base(str(world() / "base"))[0])


def test_weights_that_are_not_whole_are_copied_again(tmp_path: Path) -> None:
    advice = "copy or download the model again; if its config.json was changed, undo that"
    base = world() / "base"
    for name in ("missing", "changed"):
        shutil.copytree(base, tmp_path / name)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "missing" / "model.safetensors", {"format": "pt"})
    edit(tmp_path / "changed" / "config.json", intermediate_size=40)
    for name in ("missing", "changed"):
        with advised("model/loading/weights.py", advice):
            load_base(str(tmp_path / name))
    shutil.copy(base / "model.safetensors", tmp_path / "missing")
    shutil.copy(base / "config.json", tmp_path / "changed")
    for name in ("missing", "changed"):
        load_base(str(tmp_path / name))


def test_other_settings_of_a_base_are_undone_or_written_down(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(world() / "base", base)
    make_checkpoint(base, tmp_path / "checkpoint", calibrated=False)
    before = (base / "config.json").read_text()
    edit(base / "config.json", rms_norm_eps=0.01)
    advice = (
        "undo the change in the base's folder; if it is meant, write the new values into "
        "base_settings of skipgpt_config.json"
    )
    with advised("model/loading/identity.py", advice):
        skipgpt.load(tmp_path / "checkpoint")
    config = tmp_path / "checkpoint" / "skipgpt_config.json"
    settings = json.loads(config.read_text())["base_settings"]
    edit(config, base_settings=settings | {"rms_norm_eps": 0.01})
    skipgpt.load(tmp_path / "checkpoint")
    edit(config, base_settings=settings)
    (base / "config.json").write_text(before)
    skipgpt.load(tmp_path / "checkpoint")


# GGUF files.


def test_a_gguf_file_that_is_not_whole_is_copied_again(tmp_path: Path) -> None:
    file, cut = write_gguf(tmp_path / "whole.gguf"), tmp_path / "model.gguf"
    for size, module in ((100, "_header"), (len(file.read_bytes()) - 32, "")):
        cut.write_bytes(file.read_bytes()[:size])
        with advised(f"{GGUF}{module}.py", "copy or download the file again"):
            load_base(str(cut))
    shutil.copy(file, cut)
    load_base(str(cut))


def test_a_gguf_file_that_is_missing_is_named_aright(tmp_path: Path) -> None:
    with advised(f"{GGUF}_header.py", "check the path; download a file from a hub first"):
        load_base(str(tmp_path / "modell.gguf"))
    load_base(str(write_gguf(tmp_path / "model.gguf")))


def test_a_gguf_file_that_is_read_in_part_is_replaced_by_its_folder(tmp_path: Path) -> None:
    odd = (
        ("", {"architecture": "mamba"}),
        ("_rope", {"texts": {"llama.rope.scaling.type": "yarn"}}),
        ("", {"left_out": {"blk.1.attn_q.weight"}}),
    )
    for module, what in odd:
        file = write_gguf(tmp_path / "model.gguf", **what)  # type: ignore[arg-type]
        with advised(f"{GGUF}{module}.py", WHOLE):
            load_base(str(file))
    load_base(saved(gguf_llama(), tmp_path / "folder"))


def test_a_gguf_file_is_not_quantised_once_more(tmp_path: Path) -> None:
    file = str(write_gguf(tmp_path / "model.gguf"))
    with advised(f"{GGUF}.py", "leave out --quantize (quantize=None)"):
        load_base(file, quantize="8bit")
    load_base(file)


# Bases in 8 and 4 bits.


def test_a_base_that_cannot_be_quantised_is_loaded_as_it_is(tmp_path: Path) -> None:
    falcon = saved(tiny_base("falcon"), tmp_path / "falcon")
    with advised("model/loading/bitsandbytes.py", "load it without --quantize (quantize=None)"):
        load_base(falcon, quantize="8bit")
    load_base(falcon)
    with advised("model/loading/bitsandbytes.py", "use 8bit, or a GPU"):
        load_base(str(world() / "base"), quantize="4bit")
    load_base(str(world() / "base"), quantize="8bit")


def test_a_quantised_base_keeps_its_kind(tmp_path: Path) -> None:
    base = saved(tiny_base(initializer_range=0.15, **SIZES), tmp_path / "base")
    data = str(write_documents(tmp_path))
    run(Path(base), tmp_path / "out", tiny_config(router_stage__steps=1), quantize="4bit")
    healing = tiny_config("default", stages="lora", lora_stage__steps=1)
    with advised("training/run_start.py", "leave out --quantize (quantize=None)"):
        skipgpt.train(str(tmp_path / "out"), [data], tmp_path / "more", healing, quantize="8bit")
    skipgpt.train(str(tmp_path / "out"), [data], tmp_path / "more", healing)
    with advised(
        "export/checks.py", "use the checkpoint as it is: skipgpt.load quantises its base"
    ):
        skipgpt.export_merged(tmp_path / "out", tmp_path / "merged")
    model, _ = skipgpt.load(tmp_path / "out")
    with advised("baselines/weights.py", "give a base whose weights are not quantised, or choose"):
        refuse_quantized(model, "merging layers")
    refuse_quantized(add_routers(load_base(base)[0]), "merging layers")
    other = saved(tiny_base(initializer_range=0.15, seed=1, **SIZES), tmp_path / "other")
    advice = "pass the right base model with base= (--base) and the dtype of training with dtype="
    with advised("checkpoint/loading.py", advice):
        skipgpt.load(tmp_path / "out", base=other, dtype="bfloat16")
    skipgpt.load(tmp_path / "out", base=base, dtype="float32")
    config = tmp_path / "out" / "skipgpt_config.json"
    edit(config, base=other)
    advice = (
        "write the path of the right base model as `base` into … and the dtype of training with"
    )
    with advised("checkpoint/loading.py", advice) as told:
        skipgpt.train(str(tmp_path / "out"), [data], tmp_path / "again", healing, dtype="bfloat16")
    assert Path(told.values[0]) == config
    edit(config, base=base)
    skipgpt.train(str(tmp_path / "out"), [data], tmp_path / "again", healing, dtype="float32")


# What a run is given.


def test_a_model_beside_its_tokenizer_or_a_name_without_one(tmp_path: Path) -> None:
    base, data = str(world() / "base"), [str(world() / "good.jsonl")]
    config = tiny_config(router_stage__steps=1)
    with advised("training/run_start.py", "leave out tokenizer="):
        skipgpt.train(base, data, tmp_path / "out", config, tokenizer=byte_tokenizer())
    run(Path(base), tmp_path / "out", config)


def test_a_run_without_a_checkpoint_is_finished(tmp_path: Path) -> None:
    base, out = world() / "base", tmp_path / "out"
    config = tiny_config(router_stage__steps=2, save_every=1)
    with pytest.raises(StoppedError), stopping_at(1):
        run(base, out, config)
    advice = "finish it with `skipgpt train … --resume`"
    with advised(FOLDER, advice):
        skipgpt.load(out)
    with advised("training/run_record.py", "pass --resume to go on from it, or --overwrite to"):
        run(base, out, config)
    with advised(FOLDER, advice):
        base_config(str(out))
    run(base, out, config, resume=True)
    skipgpt.load(out)
    run(base, out, config, overwrite=True)
