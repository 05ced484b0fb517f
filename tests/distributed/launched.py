"""Training runs on several real processes with gloo, on a CPU.

`launch` forks them out of a process that has imported everything, and tells each its place as
torchrun does; nobody ends the others when one is lost. `launch_by` runs the launchers themselves.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import Finished, Running, started
from runs import ARGUMENTS

CONFIGURATIONS = Path(__file__).parents[2] / "configs/accelerate"

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What `accelerate launch` sets for configs/accelerate/fsdp2.yaml."""

SKIPGPT = ("-m", "skipgpt")
TELLING_PIECES = (str(Path(__file__).with_name("telling_pieces.py")),)
"""Programs that a launcher starts: the command, and one that tells how its parameters lie."""

LAYOUTS: dict[str, dict[str, str]] = {"ddp": {}, "fsdp2": FSDP}

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    **{
        layout: [
            "accelerate.commands.launch",
            *("--config_file", str(CONFIGURATIONS / f"{layout}.yaml"), "--num_processes", "2"),
        ]
        for layout in LAYOUTS
    },
}
"""Ways to start two processes, each a module with its arguments."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, the first of which writes."""

    all: list[Running]

    def end(self, seconds: float = 120) -> Finished:
        """Wait for their end: the worst status, what the first printed and all errors."""
        ended = [each.end(seconds) for each in self.all]
        worst = next((each.status for each in ended if each.status), 0)
        return Finished(worst, ended[0].stdout, "".join(each.stderr for each in ended))


def launch(base: Path, out: Path, *arguments: object, **places: Any) -> Finished:
    """Run `skipgpt train` on so many processes to its end."""
    with start(base, out, *arguments, **places) as running:
        return running.end()


@contextmanager
def start(
    base: Path,
    out: Path,
    *arguments: object,
    processes: int = 1,
    layout: str = "ddp",
    pieces: Path | None = None,
) -> Iterator[Processes]:
    """The same, without waiting; several processes tell in a folder how their parameters lie."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port(), **LAYOUTS[layout]}
    if pieces:
        shared["PIECES_FOLDER"] = str(pieces)
    with ExitStack() as stack:
        running = []
        for rank in range(processes):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
            place = shared | {name: str(value) for name, value in own.items()}
            before = functools.partial(_take_place, place) if processes > 1 else None
            command = _command(base, out, *arguments)
            running.append(stack.enter_context(started(*command, before=before)))
        yield Processes(running)


def launch_by(
    launcher: str, base: Path, out: Path, *arguments: object, program: tuple[str, ...] = SKIPGPT
) -> Finished:
    """Run `skipgpt train` on two processes that a launcher starts."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *program]
    command += _command(base, out, *arguments)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    return Finished(ended.returncode, ended.stdout, ended.stderr)


def curve(out: Path) -> list[dict[str, float]]:
    """The numbers of each step, but for times."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [line for line in lines if "loss" in line]
    return [{k: v for k, v in s.items() if isinstance(v, float) and k != "seconds"} for s in steps]


def kill_after(processes: Processes, number: int, happened: Callable[[], bool]) -> None:
    """SIGKILL one process of a run, by its number, once something has happened."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and all(each.alive for each in processes.all):
        if happened():
            processes.all[number].kill()
            return
        time.sleep(0.02)
    raise AssertionError("the run ended before it happened")


def is_logged(out: Path, step: int) -> bool:
    """Whether a step is in the metrics of a run."""
    path = out / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text(encoding="utf-8")


def _command(base: Path, out: Path, *arguments: object) -> list[str]:
    command = ["train", base, "--data", base.parent / "stories.jsonl", "--out", out]
    return [*map(str, command), *ARGUMENTS, "--set", "batch_size=4", *map(str, arguments)]


def _take_place(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    if "PIECES_FOLDER" in environment:
        from telling_pieces import tell_pieces

        tell_pieces()


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
