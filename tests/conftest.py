"""Tiny random models, a byte tokenizer, where development data lies, and how much is tried.

SKIPGPT_LONG=1 makes the suite long: checks that otherwise range over one family of each layout
range over all of them, and random ones try many more examples.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import shutil

# ruff: noqa: E402
# What is imported stays: to look through it for garbage, again and again, takes seconds.
gc.disable()
# Triton decides at its import whether kernels are interpreted on the CPU, and torch imports it. For
# tests on a GPU, `make test-gpu` says 0.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Read at its import, too, by the hub's client; also in commands that fixtures of a module start.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from how_much import LONG

# torch and transformers are left to the workers: all wait for the process that hands tests out.

# vLLM pins other libraries, and lives in an environment of its own: see `make test-serving`.
collect_ignore = [] if importlib.util.find_spec("vllm") else ["serving"]

# No test is timed, and every run tries the same examples.
settings.register_profile("seeded", deadline=None, derandomize=True, database=None, max_examples=60)
settings.register_profile("long", parent=settings.get_profile("seeded"), max_examples=300)
settings.load_profile("long" if LONG else "seeded")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    found = yield
    gc.freeze()
    gc.enable()
    return found


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Path]]:
    """Places of caches, one after another, which are made by those that use them only.

    The `tmp_path` of a test takes longer to make, the more there are, than many a test. The first
    place is that of commands: all are forks of one process, whichever test or fixture starts it.
    """
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as session:
        session.setenv("SKIPGPT_CACHE", str(folder / "commands"))
        yield (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch, _caches: Iterator[Path]) -> None:
    import torch

    torch.default_generator.manual_seed(0)  # torch.manual_seed takes longer than many a test
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    monkeypatch.setenv("SKIPGPT_CACHE", str(next(_caches)))


@pytest.fixture(scope="session")
def _saved_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import save_base

    return save_base(tmp_path_factory.mktemp("saved") / "base")


@pytest.fixture
def base_folder(_saved_base: Path, tmp_path: Path) -> Path:
    """A tiny Llama with its tokenizer, saved as from a hub."""
    return Path(shutil.copytree(_saved_base, tmp_path / "base"))


@pytest.fixture
def data_folder() -> Path:
    """Real development data, which the product does not carry."""
    folder = Path(
        os.environ.get("SKIPGPT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}")
    return folder
