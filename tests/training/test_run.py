"""A run: what it leaves, and what it refuses."""

import json
from contextlib import suppress
from dataclasses import replace
from math import nan
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import reference
from runs import make_checkpoint, metrics, run, stopping_at, tiny_config, weights, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.data import load_blocks
from skipgpt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    SkipGPTError,
    StoppedError,
    UnsupportedModelError,
)
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.model.surgery import routers
from skipgpt.training.run import train
from skipgpt.training.run_record import held_out_of
from tiny import byte_tokenizer


def test_a_run_leaves_a_checkpoint_and_how_it_was_made(base_folder: Path, tmp_path: Path) -> None:
    config = tiny_config("default", stages="router,lora", target_sparsity=0.3)
    result = run(base_folder, tmp_path / "out", config)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "lora",
        "metrics.jsonl",
        "routers.safetensors",
        "run.json",
        "skipgpt_config.json",
    ]
    made = json.loads((tmp_path / "out" / "run.json").read_text())
    assert made["base"] == str(base_folder)
    assert made["config"]["target_sparsity"] == 0.3
    assert made["config"]["seed"] == 0
    assert len(made["data_fingerprint"]) == 16
    assert {"skipgpt", "torch", "transformers", "peft", "accelerate"} == made["versions"].keys()
    assert made["command"]
    assert result.info == read_info(tmp_path / "out")
    assert result.info.stages == ("router", "lora")
    assert result.info.recipe == "default"
    assert list(result.held_out) == ["dense", "router", "lora"]
    assert result.held_out["dense"].sparsity["module"] == 0
    assert result.info.sparsity == result.held_out["lora"].sparsity
    assert result.info.keep == result.held_out["lora"].keep_rates
    assert result.held_out["dense"].keep_rates == {}


def test_run_json_says_how_close_each_stage_stays_to_the_base(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config("default", stages="router,lora", target_sparsity=0.3)
    result = run(base_folder, tmp_path / "out", config)
    held_out = json.loads((tmp_path / "out" / "run.json").read_text())["held_out"]
    assert held_out["dense"]["closeness"] is None  # it is the dense model
    assert held_out["router"]["closeness"] != held_out["lora"]["closeness"]
    blocks = load_blocks([str(tmp_path / "stories.jsonl")], byte_tokenizer(), config.data)
    rows = subsample_rows(blocks.held_out, config.data.evaluation_tokens)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    kl, agreement, tokens = reference.closeness(base, load(tmp_path / "out")[0], rows)
    noted = held_out["lora"]["closeness"]
    assert noted["kl_per_token"] == pytest.approx(kl, rel=1e-3)
    assert noted["agreement"] == pytest.approx(agreement, abs=1e-9)
    assert noted["dense"] == "base"
    assert held_out["lora"]["tokens"] == tokens == result.held_out["lora"].tokens


def test_a_run_of_an_earlier_version_is_read_without_closeness(tmp_path: Path) -> None:
    measured = {"nll_per_token": 2.0, "perplexity": 7.4, "tokens": 9, "sparsity": {"module": 0.2}}
    (tmp_path / "run.json").write_text(json.dumps({"held_out": {"router": measured}}))
    assert held_out_of(tmp_path)["router"].closeness is None


def test_stage_lora_may_follow_later_in_another_folder(base_folder: Path, tmp_path: Path) -> None:
    run(base_folder, tmp_path / "routers")
    before = weights(tmp_path / "routers")
    data = str(tmp_path / "stories.jsonl")
    config = tiny_config("default", stages="lora")
    result = train(str(tmp_path / "routers"), [data], tmp_path / "healed", config)
    assert result.info.stages == ("router", "lora")
    assert result.info.base == str(base_folder)
    assert weights(tmp_path / "healed")["routers.safetensors"] == before["routers.safetensors"]
    assert weights(tmp_path / "routers") == before
    load(tmp_path / "healed")


def test_lora_alone_on_a_base_model_is_refused(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora alone on the base model"):
        run(base_folder, tmp_path / "out", tiny_config(stages="lora"))


def test_a_share_as_rank_is_a_number_in_the_checkpoint_and_trains_further(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(router__stand_in=0.25, router__input="module_input")
    assert run(base_folder, tmp_path / "out", config).info.router.stand_in == 8  # of 32
    data, again = str(tmp_path / "stories.jsonl"), replace(config, stages=("lora",))
    train(str(tmp_path / "out"), [data], tmp_path / "healed", again)
    other = tiny_config(router__stand_in=0.1, router__input="module_input", stages="lora")
    with pytest.raises(ConfigError, match="got other routers than it has"):
        train(str(tmp_path / "out"), [data], tmp_path / "other", other)


@pytest.mark.parametrize("name", ["paper", "default"])  # without stand-ins, and with
def test_a_base_with_weights_that_are_no_numbers_is_refused_by_name(
    name: str, base_folder: Path, tmp_path: Path
) -> None:
    file = base_folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = nan
    save_file(tensors, file, metadata={"format": "pt"})
    words = r"got a loss of nan; model\.layers\.1\.mlp\.down_proj\.weight has values"
    with pytest.raises(UnsupportedModelError, match=words):
        run(base_folder, tmp_path / "out", tiny_config(name, stages="router"))


def test_routers_start_near_the_dense_model_where_the_recipe_says_so(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(router_stage__start="keep", router_stage__learning_rate=0)
    run(base_folder, tmp_path / "out", config)
    tensors = load_file(tmp_path / "out" / "routers.safetensors")
    assert not any(t.any() for key, t in tensors.items() if key.endswith("weight"))
    margins = [(t[0] - t[1]).item() for key, t in tensors.items() if key.endswith("bias")]
    assert margins == [1.0] * 6


def test_a_checkpoint_is_not_written_over_unless_asked(base_folder: Path, tmp_path: Path) -> None:
    run(base_folder, tmp_path / "out")
    before = weights(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"already holds a checkpoint.*--overwrite"):
        run(base_folder, tmp_path / "out", tiny_config(seed=1))
    assert weights(tmp_path / "out") == before
    run(base_folder, tmp_path / "out", tiny_config(seed=1), overwrite=True)
    assert weights(tmp_path / "out") != before
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]


def test_an_interrupted_run_is_not_written_over_unless_asked(
    base_folder: Path, tmp_path: Path
) -> None:
    with stopping_at(2), pytest.raises(StoppedError):
        run(base_folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"interrupted run; .*pass --resume"):
        run(base_folder, tmp_path / "out")
    run(base_folder, tmp_path / "out", overwrite=True)
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]


def test_overwriting_with_data_that_is_not_there_keeps_the_old_checkpoint(
    base_folder: Path, tmp_path: Path
) -> None:
    make_checkpoint(base_folder, tmp_path / "out")
    with pytest.raises(DataError):
        train(
            str(base_folder),
            [str(tmp_path / "nowhere.jsonl")],
            tmp_path / "out",
            tiny_config(),
            overwrite=True,
        )
    load(tmp_path / "out")


def test_training_a_checkpoint_onto_itself_never_loses_it(
    base_folder: Path, tmp_path: Path
) -> None:
    run(base_folder, tmp_path / "out")
    here, data = str(tmp_path / "out"), str(tmp_path / "stories.jsonl")
    with suppress(SkipGPTError):
        train(here, [data], here, tiny_config(stages="lora"), overwrite=True)
    load(here)


def test_resuming_where_nothing_ran_is_refused(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run there; .*start it without --resume"):
        run(base_folder, tmp_path / "out", resume=True)


def test_resuming_with_other_settings_or_data_is_refused(base_folder: Path, tmp_path: Path) -> None:
    with stopping_at(2), pytest.raises(StoppedError):
        run(base_folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="other values than it was started with: config"):
        run(base_folder, tmp_path / "out", tiny_config(seed=9), resume=True)
    write_documents(tmp_path, count=30)
    with pytest.raises(ConfigError, match="data_fingerprint, documents"):
        run(base_folder, tmp_path / "out", resume=True)


def test_lora_targets_that_the_model_lacks_are_refused_before_any_training(
    base_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(stages="router,lora", lora_stage__targets="query_key_value")
    with pytest.raises(ConfigError, match="query_key_value"):
        run(base_folder, tmp_path / "out", config)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_an_unknown_schedule_is_an_error_of_the_config(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zigzag"):
        run(base_folder, tmp_path / "out", tiny_config(router_stage__schedule="zigzag"))


def test_a_file_in_the_place_of_the_folder_is_refused(base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="got a file; expected a folder"):
        run(base_folder, tmp_path / "out", tiny_config("paper"))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_model_in_memory_is_trained_as_its_folder_is(base_folder: Path, tmp_path: Path) -> None:
    config = tiny_config("default", stages="router", target_sparsity=0.3)
    run(base_folder, tmp_path / "by-name", config)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    data = str(tmp_path / "stories.jsonl")
    with mock.patch("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5)):
        train(model, [data], tmp_path / "in-memory", config)
    assert weights(tmp_path / "in-memory") == weights(tmp_path / "by-name")
    assert len(routers(model)) == 6  # in place
    assert read_info(tmp_path / "in-memory").base == str(base_folder)
    with pytest.raises(ConfigError, match="a tokenizer beside the name"):
        train(str(base_folder), [data], tmp_path / "x", config, tokenizer=byte_tokenizer())
    model.config._name_or_path = ""
    with pytest.raises(ConfigError, match="not loaded from a folder or hub id"):
        train(model, [data], tmp_path / "x", config)
    assert not (tmp_path / "x").exists()


def test_a_routed_model_in_memory_keeps_its_routers(base_folder: Path, tmp_path: Path) -> None:
    config = tiny_config("default", stages="router", target_sparsity=0.3)
    run(base_folder, tmp_path / "first", config)
    data = [str(tmp_path / "stories.jsonl")]
    model, _ = load(tmp_path / "first", trainable=True)
    before = {site: each.last.weight.clone() for site, each in routers(model).items()}
    with mock.patch("skipgpt.evaluation.calibrate.CURVE", (0.0, 0.25, 0.5)):
        train(model, data, tmp_path / "healed", tiny_config("default", stages="lora"))
    assert read_info(tmp_path / "healed").stages == ("router", "lora")
    for site, each in routers(load(tmp_path / "healed")[0]).items():
        assert torch.equal(each.last.weight, before[site])
    with pytest.raises(ConfigError, match="a NoneType as the base"):
        train(None, data, tmp_path / "x", config)


def test_modules_are_counted_with_a_word_where_the_unit_does_not_reach_the_target(
    base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config("default", stages="router", target_sparsity=0.9, budget="flops")
    with pytest.raises(ConfigError, match=r"got a target of 90.0% of FLOPs; expected at most"):
        run(base_folder, tmp_path / "out", config)
    run(base_folder, tmp_path / "out", config, or_modules=True)
    assert read_info(tmp_path / "out").budget == "modules"
    (said,) = [r.getMessage() for r in caplog.records if "counts modules instead" in r.getMessage()]
    assert "not 90.0%" in said
    run(base_folder, tmp_path / "again", replace(config, target_sparsity=0.05), or_modules=True)
    assert read_info(tmp_path / "again").budget == "flops"
