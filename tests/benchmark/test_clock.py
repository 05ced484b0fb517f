"""Taking turns on the clock; here the clock is one that only tasks move."""

from __future__ import annotations

import itertools

import pytest
import torch

from skipgpt.benchmark.timing import clock
from skipgpt.benchmark.timing.clock import Task, alternate
from skipgpt.system.hardware import hardware, wait_for

CPU = torch.device("cpu")


class Clock:
    """Shows the seconds that were spent, and notes who looks and who works, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[str] = []

    def __call__(self) -> float:
        self.seen.append("look")
        return self.now

    def task(self, name: str, *seconds: float) -> Task:
        """A task that takes one of these times after another, and as long to prepare."""
        left = iter(seconds)

        def prepare() -> float:
            self.now += 100.0
            return next(left)

        def run(given: float) -> None:
            self.seen.append(name)
            self.now += given

        return Task(run, prepare)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clock.time, "perf_counter", made)
    return made


def test_seconds_are_those_of_the_run_alone_and_of_rounds_that_count(fake: Clock) -> None:
    tasks = {
        "dense": fake.task("dense", 50.0, 60.0, 4.0, 5.0),
        "sparse": fake.task("sparse", 70.0, 80.0, 1.0, 2.0),
    }
    assert alternate(tasks, repeats=2, device=CPU, warmup=2) == {
        "dense": [4.0, 5.0],
        "sparse": [1.0, 2.0],
    }


def test_who_begins_changes_from_round_to_round(fake: Clock) -> None:
    tasks = {name: fake.task(name, *4 * [1.0]) for name in ("a", "b", "c")}
    seconds = alternate(tasks, repeats=3, device=CPU, warmup=1)
    order = "".join(each for each in fake.seen if each != "look")
    assert order == "abcbcacababc"
    assert list(seconds) == ["a", "b", "c"]
    # Nobody always runs after the same one.
    before = {name: {a for a, b in itertools.pairwise(order) if b == name} for name in tasks}
    assert all(len(each) > 1 for each in before.values())


def test_where_a_run_is_short_each_runs_once_more_off_the_clock(fake: Clock) -> None:
    short, long = [0.5 * clock.SHORT] * 3, [1.0, 7.0, 2.0]
    seconds = alternate({"a": fake.task("a", *short), "b": fake.task("b", *long)}, 1, CPU, warmup=1)
    assert [each for each in fake.seen if each != "look"] == ["a", "b", "b", "b", "a", "a"]
    assert seconds == {"a": pytest.approx([short[0]]), "b": [2.0]}


def test_the_device_is_waited_for_before_each_look_at_the_clock(
    fake: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "wait_for", lambda device: fake.seen.append(f"wait {device}"))
    alternate({"a": fake.task("a", 1.0)}, repeats=1, device=CPU, warmup=0)
    assert fake.seen == ["wait cpu", "look", "a", "wait cpu", "look"]


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "xpu"])
def test_every_accelerator_is_waited_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    wait_for(torch.device(name))
    assert waited == [torch.device(name)]
    wait_for(CPU)
    assert len(waited) == 1


def test_a_figure_names_its_hardware() -> None:
    assert {"device", "threads", "torch", "transformers"} <= hardware(CPU).keys()
