"""Scripts of `benchmarks/`, as modules of the test's own process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

FOLDER = Path(__file__).parents[2] / "benchmarks"


def imported(name: str) -> ModuleType:
    """A script of this name, which finds its neighbours only while it is imported.

    Some of them have names of installed packages.
    """
    spec = importlib.util.spec_from_file_location(f"{name}_script", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types that they name
    with mock.patch.object(sys, "path", [str(FOLDER), *sys.path]):
        spec.loader.exec_module(module)
    return module
