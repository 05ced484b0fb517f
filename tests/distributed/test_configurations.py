"""The files that `accelerate launch` reads say what their names say, as far as Accelerate reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from launched import FSDP
from skipgpt.errors import ConfigError, MissingExtraError
from skipgpt.system.distributed import init
from skipgpt.training.launcher import check_launcher, check_whole

FOLDER = Path(__file__).parents[2] / "configs/accelerate"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_each_file_as_what_its_name_says(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "no"
    assert config.num_processes == 8
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
        assert config.deepspeed_config["zero3_init_flag"] is False


def test_no_other_file_lies_there() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


def test_the_guide_names_each_file_and_their_folder() -> None:
    guide = FOLDER.parents[1] / "docs/scaling.md"
    text = guide.read_text(encoding="utf-8")
    assert all(f"`{name}.yaml`" in text for name in KINDS)
    assert "`configs/accelerate/`" in text


def test_what_the_tests_of_fsdp2_run_with_is_what_its_file_sets() -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    asked = ["--config_file", str(FOLDER / "fsdp2.yaml"), "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(asked))
    environment = prepare_multi_gpu_env(args)
    assert {name: environment[name] for name in FSDP} == FSDP


@pytest.mark.parametrize("name", KINDS)
def test_two_machines_that_launch_as_the_guide_says_meet_at_one_place(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)
    guide = (FOLDER.parents[1] / "docs/scaling.md").read_text(encoding="utf-8")
    (command,) = re.findall(
        r"accelerate launch ((?:.*\\\n)*.*--machine_rank 0(?:.*\\\n)*.*)", guide
    )
    command = command.replace("configs/accelerate/fsdp2", str(FOLDER / name)).replace("\\\n", "")
    told = []
    for rank in range(2):
        asked = command.replace("--machine_rank 0", f"--machine_rank {rank}").split()
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(asked))
        if name.startswith("zero"):
            args.deepspeed_fields_from_accelerate_config = ""  # as the launcher itself sets it
            prepare_deepspeed_cmd_env(args)
        else:
            prepare_multi_gpu_env(args)
        told.append((args.rdzv_endpoint, args.nnodes, args.nproc_per_node, args.node_rank))
    assert told == [("10.0.0.1:29500", "2", "8", rank) for rank in range(2)]


def test_deepspeed_that_is_not_there_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[deepspeed\]'"):
        init("cpu")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"FSDP_VERSION": "1"}, "got FSDP version 1"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "got SIZE_BASED_WRAP"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params on a CPU"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "got Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "got a parallelism_config"),
    ],
)
def test_a_layout_that_cannot_work_is_refused_with_the_file_that_does(
    changed: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FSDP.items():
        monkeypatch.setitem(os.environ, name, value)
    check_launcher("cpu")
    for name, value in changed.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(ConfigError, match=rf"{told}.*use configs/accelerate/\w+\.yaml"):
        check_launcher("cpu")


def test_quantised_weights_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    check_whole("8bit")
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_FSDP", "true")
    check_whole(None)
    with pytest.raises(ConfigError, match=r"a base in 8bit.*ddp\.yaml"):
        check_whole("8bit")
