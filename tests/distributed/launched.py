"""Training runs on real processes: the command under torchrun, with gloo, on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import ARGUMENTS

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


@dataclass(frozen=True)
class Ended:
    """How a launch ended."""

    status: int
    stdout: str
    stderr: str


def launch(
    base: Path, out: Path, *arguments: object, processes: int = 1, layout: str = "ddp", **more: Any
) -> Ended:
    """Run `skipgpt train` on so many processes to its end."""
    with start(base, out, *arguments, processes=processes, layout=layout, **more) as running:
        stdout, stderr = running.communicate(timeout=120)
    return Ended(running.returncode, stdout, stderr)


def start(
    base: Path,
    out: Path,
    *arguments: object,
    processes: int = 1,
    layout: str = "ddp",
    program: tuple[str, ...] = SKIPGPT,
    **more: Any,
) -> subprocess.Popen[str]:
    """The same, without waiting."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(processes)]
    command = [*(launcher if processes > 1 else [sys.executable]), *program, "train"]
    command += [str(base), "--data", str(base.parent / "stories.jsonl"), "--out", str(out)]
    command += [*ARGUMENTS, "--set", "batch_size=4", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (LAYOUTS[layout] if processes > 1 else {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **streams, **more)


def curve(out: Path) -> list[dict[str, float]]:
    """The numbers of each step, but for times."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [line for line in lines if "loss" in line]
    return [{k: v for k, v in s.items() if isinstance(v, float) and k != "seconds"} for s in steps]


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher has started."""
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(each) for each in tasks]


def kill_one_after(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """SIGKILL the second process of a run once a step is logged."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text(encoding="utf-8"):
            os.kill(children(process)[-1], signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never logged")


def kill_once_there(process: subprocess.Popen[str], path: Path) -> None:
    """SIGKILL a run of one process once a file or folder is there."""
    deadline = time.monotonic() + 90
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if path.exists():
                return
            time.sleep(0.02)
    finally:
        process.kill()
    raise AssertionError(f"{path} was never there")
