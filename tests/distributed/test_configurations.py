"""The files that `accelerate launch` reads say what their names say, as far as Accelerate reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from launched import FSDP
from skipgpt.errors import ConfigError, MissingExtraError
from skipgpt.processes import meet
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


def test_what_the_tests_of_fsdp2_run_with_is_what_its_file_sets() -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    asked = ["--config_file", str(FOLDER / "fsdp2.yaml"), "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(asked))
    environment = prepare_multi_gpu_env(args)
    assert {name: environment[name] for name in FSDP} == FSDP


def test_deepspeed_that_is_not_there_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skipgpt\[deepspeed\]'"):
        meet("cpu")


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
