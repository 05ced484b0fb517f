import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from skipgpt.serving.vllm.launch import SignalForwarder
from skipgpt.system.stopping import handling

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda number, frame: print("asked", flush=True))
print("up", flush=True)
while True:
    time.sleep(60)
"""


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[str]]:
    """A process that does not end when it is asked to."""
    command = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_a_second_one_ends(
    stubborn: subprocess.Popen[str], number: signal.Signals
) -> None:
    stopping = SignalForwarder()
    with handling(stopping):
        stopping.hand_on_to(stubborn)
        assert not stopping.asked
        os.kill(os.getpid(), number)
        assert stopping.asked
        assert stubborn.stdout.readline() == "asked\n"
        assert stubborn.poll() is None
        os.kill(os.getpid(), number)
        assert stubborn.wait(30) == -signal.SIGKILL
        os.kill(os.getpid(), number)  # of what is over


def test_a_signal_that_came_before_the_process_is_not_lost(
    stubborn: subprocess.Popen[str],
) -> None:
    stopping = SignalForwarder()
    with handling(stopping):
        os.kill(os.getpid(), signal.SIGTERM)
        stopping.hand_on_to(stubborn)
        assert stubborn.stdout.readline() == "asked\n"
