"""Errors of runs and measurements in Python: each is caused, and its advice followed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from lm_eval._cli import HarnessCLI
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file

import skipgpt
from advice_on_models import LOADING
from following import advised
from following import run as line
from local_data import write_items
from made_world import edit, world
from runs import rows, run, stopping_at, tiny_config
from skipgpt.config import DataConfig
from skipgpt.data import read_documents
from skipgpt.errors import StoppedError
from skipgpt.evaluation.harness.benchmark import Setting, check_tasks
from skipgpt.evaluation.harness.encoding import with_bos
from skipgpt.evaluation.harness.model import RoutedLM
from skipgpt.evaluation.harness.tasks import TaskName, load_tasks
from skipgpt.training.fit_stage import check_fit
from skipgpt.training.launcher import check_launcher, check_whole
from skipgpt.training.loop.arguments import check_trackers
from tiny import byte_tokenizer, tiny_routed

CONFIGS = Path(__file__).parents[2] / "configs/accelerate"
ONE = tiny_config(router_stage__steps=1)
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
"""As `fsdp2.yaml` sets it."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the base model that may be changed."""
    return Path(shutil.copytree(world() / "base", tmp_path / "base"))


def test_a_run_is_resumed_as_it_was_started(base: Path, tmp_path: Path) -> None:
    config = tiny_config(router_stage__steps=2, save_every=1)
    out = tmp_path / "out"
    with pytest.raises(StoppedError), stopping_at(1):
        run(base, out, config)
    other = tiny_config(router_stage__steps=3, save_every=1)
    advice = "repeat the first command and add --resume, or use --overwrite in its place"
    with advised("training/run_record.py", advice):
        run(base, out, other, resume=True)
    data = tmp_path / "stories.jsonl"
    before = data.read_text()
    data.write_text(before + '\n{"text": "One more story of a cat."}')
    undo = "undo the change, or use --overwrite in place of --resume to start anew"
    with advised("training/run_record.py", undo):
        run(base, out, config, resume=True)
    data.write_text(before)
    settings = (base / "config.json").read_text()
    edit(base / "config.json", rms_norm_eps=0.01)
    with advised("training/run_record.py", undo):
        run(base, out, config, resume=True)
    (base / "config.json").write_text(settings)
    shutil.copytree(out, tmp_path / "again")
    run(base, out, config, resume=True)
    run(base, tmp_path / "again", other, overwrite=True)


def test_weights_that_are_no_numbers_are_fetched_again(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    whole = dict(weights)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.full_like(
        weights["model.layers.1.mlp.up_proj.weight"], torch.nan
    )
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with advised("training/measurement.py", "get the weights again"):
        run(base, tmp_path / "out", ONE)
    save_file(whole, base / "model.safetensors", {"format": "pt"})
    run(base, tmp_path / "out", ONE, overwrite=True)


def test_values_that_overflow_are_computed_in_float32(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 3e4
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with advised("training/measurement.py", "use --dtype float32 (dtype=)"):
        run(base, tmp_path / "out", ONE, dtype="float16")
    run(base, tmp_path / "out", ONE, dtype="float32", overwrite=True)


def test_costs_that_are_no_numbers_are_computed_in_float32(base: Path, tmp_path: Path) -> None:
    fit = tiny_config("default", stages="fit")
    nan = mock.patch(
        "skipgpt.fitting.costs.torch.isfinite", lambda x: torch.zeros_like(x, dtype=torch.bool)
    )
    advice = "run with --dtype float32, whose range is wider"
    with nan, advised("fitting/gated_passes.py", advice):
        run(base, tmp_path / "out", fit, dtype="float16")
    run(base, tmp_path / "out", fit, dtype="float32", overwrite=True)


def test_weights_whose_outputs_overflow_are_fetched_again(base: Path, tmp_path: Path) -> None:
    whole = load_file(base / "model.safetensors")
    name, fit = "model.layers.1.mlp.down_proj.weight", tiny_config("default", stages="fit")
    save_file(whole | {name: whole[name] * 1e20}, base / "model.safetensors", {"format": "pt"})
    advice = "get the weights again: whole ones give finite numbers"
    with advised("fitting/gated_passes.py", advice):
        run(base, tmp_path / "out", fit)
    save_file(whole, base / "model.safetensors", {"format": "pt"})
    run(base, tmp_path / "out", fit, overwrite=True)


def test_a_fit_is_made_in_one_process(base: Path, tmp_path: Path) -> None:
    fit = tiny_config("default", stages="fit,router")
    advice = "fit in one process (--stages fit), then train its checkpoint in several"
    with (
        mock.patch("skipgpt.training.fit_stage.launched", return_value=2),
        advised("training/fit_stage.py", advice),
    ):
        check_fit(fit, True)
    check_fit(tiny_config("default", stages="fit"), True)
    with mock.patch("skipgpt.training.fit_stage.launched", return_value=2):
        check_fit(tiny_config("default", stages="router"), False)


LAYOUTS = (
    {"FSDP_VERSION": "1"},
    {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"},
    {"FSDP_OFFLOAD_PARAMS": "true"},
    {"ACCELERATE_USE_MEGATRON_LM": "true"},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
)


@pytest.mark.parametrize("changed", LAYOUTS, ids=lambda changed: next(iter(changed)))
def test_a_layout_that_cannot_work_is_replaced_by_the_file_that_is_named(
    changed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    environment = mock.patch.dict(os.environ, FSDP | changed)
    with environment, advised("training/launcher.py", "use configs/accelerate/…") as told:
        check_launcher("cpu")
    file = CONFIGS / told.values[0]
    asked = ["--config_file", str(file), "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(asked))
    with mock.patch.dict(os.environ, prepare_multi_gpu_env(args)):
        check_launcher("cpu")


def test_quantised_weights_are_not_sharded() -> None:
    advice = "use configs/accelerate/ddp.yaml, or leave out --quantize"
    with mock.patch.dict(os.environ, {"ACCELERATE_USE_FSDP": "true"}):
        with advised("training/launcher.py", advice):
            check_whole("8bit")
        check_whole(None)
    assert (CONFIGS / "ddp.yaml").exists()
    check_whole("8bit")


def test_a_tracker_is_installed_by_the_line_that_is_printed() -> None:
    installed = "transformers.integrations.integration_utils.is_wandb_available"
    absent = mock.patch(installed, return_value=False)
    with absent, advised("training/loop/arguments.py", "run: pip install …") as told:
        check_trackers(["wandb"])
    assert told.values == ("wandb",)  # what the line installs is simulated: no network here
    with mock.patch(installed, return_value=True):
        check_trackers(["wandb"])


# Text and tasks.


def test_a_source_is_given() -> None:
    with advised("data/sources.py", "give --data SRC"):
        read_documents([], DataConfig())
    assert list(read_documents([str(world() / "good.jsonl")], DataConfig()))


def test_a_tokenizer_without_a_beginning_is_asked_for_none() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    with advised("evaluation/harness/encoding.py", "leave it out"):
        with_bos(tokenizer, True)
    with_bos(tokenizer, False)


def test_a_task_decodes_one_row_per_prompt() -> None:
    lm = RoutedLM(tiny_routed(), byte_tokenizer(), batch_size=1)

    def decode(**options: int) -> None:
        given = ("a cat", {"until": ["\n"], "max_gen_toks": 2, **options})
        lm.generate_until([Instance("generate_until", {}, given, 0, ("task", 0, 1))])

    with advised("evaluation/harness/model.py", "leave … out of them, or set it to 1"):
        decode(num_beams=3)
    decode()
    decode(num_beams=1)


def test_a_checkpoint_is_calibrated_before_tasks_are_scored_at_sparsities(tmp_path: Path) -> None:
    for path in world().iterdir():
        (tmp_path / path.name).symlink_to(path)
    of_tasks = LOADING["report"] + " --tasks numbers --task-dir tasks"
    refused = line(of_tasks.replace("MODEL", "uncalibrated"), tmp_path)
    advice = "run skipgpt.calibrate, or score it as it is: skipgpt eval --tasks"
    assert refused.raised
    assert refused.raised.todo == advice
    with advised("evaluation/harness/benchmark.py", advice):
        check_tasks(tmp_path / "uncalibrated", ["numbers"], Setting(task_dir=tmp_path / "tasks"))
    model, _ = skipgpt.load(tmp_path / "uncalibrated")
    skipgpt.calibrate(model, rows(4))
    skipgpt.save(model, tmp_path / "calibrated")
    for each in (
        of_tasks.replace("MODEL", "calibrated"),
        LOADING["eval tasks"].replace("MODEL", "uncalibrated"),
    ):
        done = line(each, tmp_path)
        assert done.status == 0, done.stderr


def test_a_task_is_looked_up_and_its_data_checked(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_items(tasks)
    looking = "evaluation/harness/tasks.py"
    (tasks / "broken.yaml").write_text("task: [")
    advice = "`lm_eval ls tasks` lists them; files of … that cannot be read: …"
    with (
        advised(looking, advice),
        mock.patch(  # building it takes seconds
            "skipgpt.evaluation.harness.tasks._index_with",
            return_value=mock.Mock(task_index=(), all_tasks=("piqa",)),
        ),
    ):
        load_tasks([TaskName.parse("no_such_task")], tasks)
    with mock.patch.object(sys, "argv", ["lm_eval", "ls", "tasks"]):
        assert HarnessCLI().parse_args().command == "ls"
    load_tasks([TaskName.parse("numbers")], tasks)
    (tasks / "spelled.yaml").write_text(
        "task: spelled\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tasks / 'gone.json'}}}}}\n"
        'doc_to_text: "{{query}}"\ndoc_to_choice: choices\ndoc_to_target: gold\n'
    )
    advice = (
        "check the task file, the network and HF_HUB_OFFLINE; local tasks are given with --task-dir"
    )
    with advised(looking, advice):
        load_tasks([TaskName.parse("spelled")], tasks)
    shutil.copy(tasks / "numbers.jsonl", tasks / "gone.json")
    load_tasks([TaskName.parse("spelled")], tasks)


def test_the_data_of_a_task_is_checked(tmp_path: Path) -> None:
    write_items(tmp_path)
    numbers = [TaskName.parse("numbers")]
    loading = "skipgpt.evaluation.harness.local.LocalTasks.load"
    with (  # the harness reads the first item unchecked
        mock.patch(loading, side_effect=IndexError("no rows")),
        advised("evaluation/harness/tasks.py", "check its data"),
    ):
        load_tasks(numbers, tmp_path)
    with (
        mock.patch(loading, return_value=mock.Mock(eval_docs=[])),
        advised("evaluation/harness/tasks.py", "check its data"),
    ):
        load_tasks(numbers, tmp_path)
    load_tasks(numbers, tmp_path)
