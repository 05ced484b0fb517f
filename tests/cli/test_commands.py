"""Each verb, as a script sees it: exit status, one JSON document, silence elsewhere."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import skipgpt as library
from command import skipgpt
from runs import ARGUMENTS, logits, metrics, shared_checkpoint, write_documents
from skipgpt.checkpoint.folder import read_info
from skipgpt.checkpoint.loading import load
from skipgpt.model.families.table import FAMILIES


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("text"), count=8)


@pytest.fixture
def checkpoint() -> Path:
    return shared_checkpoint()


def done(*arguments: object, **options: Any) -> Any:
    """Run a verb with --json; the document that it printed and nothing else."""
    finished = skipgpt(*arguments, "--json", **options)
    assert finished.status == 0, finished.stderr
    assert finished.stderr == ""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(finished.stdout, parse_constant=refuse)


def test_train_prints_the_checkpoint_and_its_losses(base_folder: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", write_documents(tmp_path)
    finished = skipgpt(
        *("train", base_folder, "--data", data, "--out", out, *ARGUMENTS),
        *("--stages", "router,lora", "--steps", "3,2", "--lr", "0.01,0.001", "--batch-size", "4"),
        *("--block-size", "24", "--sparsity", "0.3", "--seed=7", "--json"),
    )
    assert finished.status == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert list(document["held_out"]) == ["dense", "router", "lora"]
    assert document["folder"] == str(out)
    assert document["info"]["stages"] == ["router", "lora"]
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["seed"] == 7
    assert config["target_sparsity"] == 0.3
    assert (config["router_stage"]["steps"], config["lora_stage"]["steps"]) == (3, 2)
    assert config["router_stage"]["learning_rate"] == 0.01
    assert config["lora_stage"]["learning_rate"] == 0.001
    assert (config["batch_size"], config["data"]["block_size"]) == (4, 24)
    assert len(metrics(out)) == 5
    assert load(out)


def test_the_later_source_of_a_setting_wins(base_folder: Path, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(
        "recipe = 'default'\nseed = 3\nbatch_size = 2\ntarget_sparsity = 0.1\nstages = ['router']\n"
        "[router_stage]\nsteps = 5\nalpha = 20\nlearning_rate = 0.5\n"
    )
    out, data = tmp_path / "out", write_documents(tmp_path)
    finished = skipgpt(
        *("train", base_folder, "--data", data, "--out", out, "--config", toml),
        *("--recipe", "paper", "--set", "router_stage.alpha=30", "--set", "batch_size=3"),
        *("--set", "data.block_size=16", "--set", "data.held_out=0.3"),
        *("--batch-size", "4", "--steps", "1", "--seed=9"),
    )
    assert finished.status == 0, finished.stderr
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["recipe"] == "paper"
    assert config["router_stage"]["temperature_start"] == 5.0  # the recipe's
    assert config["router_stage"]["learning_rate"] == 0.5  # the file's
    assert config["target_sparsity"] == 0.1
    assert config["router_stage"]["alpha"] == 30  # --set's
    assert (config["batch_size"], config["router_stage"]["steps"]) == (4, 1)  # the options'
    assert config["seed"] == 9


def test_eval_prints_the_promised_keys(checkpoint: Path, text: Path) -> None:
    document = done("eval", checkpoint, "--text", text, "--block-size", 32, "--quiet")
    assert {"perplexity", "nll_per_token", "tokens", "sparsity"} <= document.keys()
    assert set(document["sparsity"]) == {"module", "attn", "mlp", "params", "flops"}
    assert document["tokens"] > 0


def test_eval_turns_the_dial_and_runs_as_told(checkpoint: Path, text: Path) -> None:
    found = [
        done("eval", checkpoint, "--text", text, "--block-size", 32, "--quiet", *more)
        for more in ((), ("--sparsity", 0.5), ("--sparsity", 0), ("--execution", "dense"))
    ]
    target, half, none, dense = (each["sparsity"]["module"] for each in found)
    assert 0.1 < target < 0.4 < half < 0.6
    assert none == dense == 0
    assert found[2]["nll_per_token"] == pytest.approx(found[3]["nll_per_token"], rel=1e-6)


def test_eval_for_people_is_a_line_each_about_loss_closeness_and_the_cache(
    checkpoint: Path, text: Path
) -> None:
    finished = skipgpt("eval", checkpoint, "--text", text, "--block-size", 32)
    assert finished.stdout.startswith("perplexity ")
    _, closeness, cache = finished.stdout.splitlines()
    assert re.fullmatch(
        r"KL to dense \d\.\d{4} nats per token, top-1 agreement \d+\.\d%", closeness
    )
    assert cache.startswith("cache ")
    assert "0.0% less than dense" in cache


def test_eval_measures_closeness_to_the_base_without_lora(checkpoint: Path, text: Path) -> None:
    found = [
        done("eval", checkpoint, "--text", text, "--block-size", 32, "--quiet", *more)
        for more in ((), ("--execution", "dense"), ("--no-closeness",))
    ]
    routed, healed, unmeasured = (each["closeness"] for each in found)
    assert routed["kl_per_token"] > 0
    assert routed["dense"] == healed["dense"] == "base"
    assert healed["kl_per_token"] > 0.01  # LoRA is part of the model, and not of its base
    assert unmeasured is None
    assert found[0]["nll_per_token"] == found[2]["nll_per_token"]


def test_generate_continues_an_argument_or_a_pipe(checkpoint: Path) -> None:
    given = done("generate", checkpoint, "The cat", "--max-new-tokens", 5)
    assert given["prompt_tokens"] == 7
    assert 1 <= given["new_tokens"] <= 5
    assert 0 <= given["sparsity"] <= 1
    assert done("generate", checkpoint, "--max-new-tokens", 5, stdin="The cat") == given
    for_people = skipgpt("generate", checkpoint, "The cat", "--max-new-tokens", 5)
    assert for_people.stdout == "The cat" + given["text"] + "\n"


def test_sampling_follows_the_seed(checkpoint: Path) -> None:
    made = [
        done("generate", checkpoint, "The cat", "--max-new-tokens", 12, "--sample", "--seed", seed)
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


def test_show_says_what_a_checkpoint_is(checkpoint: Path) -> None:
    document = done("show", checkpoint)
    info = read_info(checkpoint)
    assert document["base"] == info.base
    assert document["fingerprint"] == info.fingerprint
    assert document["stages"] == ["router", "lora"]
    lines = skipgpt("show", checkpoint).stdout
    for words in (info.fingerprint, "router, lora", "25% of modules", "of FLOPs", "(verified)"):
        assert words in lines


def test_families_lists_every_row_with_the_promised_keys() -> None:
    rows = done("families")["rows"]
    assert [row["family"] for row in rows] == sorted(FAMILIES)
    assert all({"family", "layout", "skips", "verified"} <= row.keys() for row in rows)
    lines = skipgpt("families").stdout
    assert all(name in lines for name in FAMILIES)


def test_export_writes_what_transformers_loads(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert done("export", checkpoint, "--merged", "--out", out, "--sparsity", 0.5) == {
        "out": str(out)
    }
    library.register()
    expected, _ = load(checkpoint, merge=True, sparsity=0.5)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(expected))


def test_convert_turns_an_authors_file_into_a_checkpoint(base_folder: Path, tmp_path: Path) -> None:
    from official import linear_routers

    torch.save(linear_routers(), tmp_path / "router.pth")
    document = done(
        "convert", tmp_path / "router.pth", "--base", base_folder, "--out", tmp_path / "out"
    )
    assert document["base"] == str(base_folder)
    assert document["curves"] == {}
    assert load(tmp_path / "out")


def test_convert_with_text_calibrates(base_folder: Path, tmp_path: Path) -> None:
    from official import linear_routers

    torch.save(linear_routers(), tmp_path / "router.pth")
    write_documents(tmp_path, count=200)
    document = done(
        *("convert", tmp_path / "router.pth", "--base", base_folder, "--out", tmp_path / "out"),
        *("--data", tmp_path / "stories.jsonl", "--sparsity", 0.3, "--block-size", 64),
    )
    assert document["target_sparsity"] == 0.3
    assert document["curves"]["modules"][0] == [0.0, None]


def test_quiet_leaves_standard_error_empty(base_folder: Path, tmp_path: Path) -> None:
    data = write_documents(tmp_path)
    arguments = ("--data", data, *ARGUMENTS, "--stages", "router,lora", "--steps", "1,1")
    loud = skipgpt("train", base_folder, *arguments, "--out", tmp_path / "loud")
    quiet = skipgpt("train", base_folder, *arguments, "--out", tmp_path / "quiet", "--quiet")
    assert loud.status == quiet.status == 0
    assert "stage lora: a sparse step runs at" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout.startswith(str(tmp_path / "quiet"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--data", "text.txt"), "got no --out"),
        (("--out", "out"), "got no --data"),
        (("--data", "text.txt", "--out", "out", "--processes", 4), "got --processes"),
        (("--dry-run", "--quantize", "8bit"), "got --quantize"),
    ],
)  # fmt: skip
def test_quiet_commands_say_which_option_is_wrong(
    given: tuple[Any, ...], told: str, base_folder: Path
) -> None:
    done = skipgpt("train", base_folder, *given, "--quiet")
    assert (done.status, done.stdout) == (2, "")
    assert told in done.stderr


def test_quiet_commands_still_warn(checkpoint: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(json.loads((checkpoint / "skipgpt_config.json").read_text())["base"], base)
    config = json.loads((base / "config.json").read_text())
    longer = config | {"max_position_embeddings": 2 * config["max_position_embeddings"]}
    (base / "config.json").write_text(json.dumps(longer))
    done = skipgpt("generate", checkpoint, "a", "--base", base, "--max-new-tokens", 2, "--quiet")
    assert done.status == 0
    assert "the base model has changed since: max_position_embeddings" in done.stderr


def test_a_checkpoint_is_found_from_wherever_the_command_runs(
    checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "here")
    assert done("show", "here", folder=tmp_path)["base"] == read_info(checkpoint).base
