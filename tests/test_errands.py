"""What docs/extending.md walks through works: one file, one entry, and it appears."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import made_report
import skipgpt
from bases import deep
from skipgpt.config import RouterConfig
from skipgpt.fitting.heads import write_router
from skipgpt.fitting.regression import Design
from skipgpt.removal.units import units_of
from skipgpt.report import analyses
from skipgpt.report.writing import rendered
from skipgpt.routing.router import HEADS, build_router, set_constant

DOCUMENT = Path(__file__).parents[1] / "docs/extending.md"


def example(title: str, folder: Path) -> ModuleType:
    """The first block of Python of a section, in a file of its own, imported."""
    section = DOCUMENT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    file = folder / f"{title.replace(' ', '_').lower()}.py"
    file.write_text(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[0])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_router_head_is_built_trained_and_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = example("A router head", tmp_path).NarrowRouter
    monkeypatch.setitem(HEADS, "narrow", head)
    router = build_router(SimpleNamespace(head="narrow"), 32)
    assert router(torch.zeros(2, 7, 32)).shape == (2, 7, 2)
    set_constant(router, 3.0)
    torch.testing.assert_close(router.margin(torch.randn(2, 7, 32)), torch.full((2, 7), 3.0))
    read = torch.randn(4096, 32)
    cost = torch.exp(read[:, 0])  # which a router can predict
    found = write_router(router, Design(read), cost)
    assert found.explained > 0.1
    margin = router.margin(read[None])[0]
    assert torch.corrcoef(torch.stack([margin, read[:, 0]]))[0, 1] > 0.8


def test_every_head_has_a_name_in_the_config() -> None:
    names = typing.get_args(typing.get_type_hints(RouterConfig)["head"])
    assert set(names) == set(HEADS)


def test_a_static_baseline_is_known_to_the_command_by_its_entry(tmp_path: Path) -> None:
    made = example("A static baseline", tmp_path)
    layers = units_of(deep(), "layers")
    assert made.ENTRY.order(deep(), torch.zeros(1, 2, dtype=torch.int64), 2) == layers[:-3:-1]
    assert made.ENTRY.candidates(deep()) == layers
    package = Path(skipgpt.__file__).parent
    copy = tmp_path / "copy" / "skipgpt"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("nano", "__pycache__"))
    function = Path(made.__file__).read_text().split("ENTRY = ")[0]
    function = function.replace("from skipgpt.baselines.registry import Static\n", "")
    (copy / "baselines/deepest.py").write_text(function)
    registry = copy / "baselines/registry.py"
    text = registry.read_text()
    text = text.replace(
        "from skipgpt.baselines.fisher", "from skipgpt.baselines.deepest import deepest\n"
        "from skipgpt.baselines.fisher", 1
    )  # fmt: skip
    start = "STATIC: Mapping[str, Static] = {\n"
    entry = '    "deepest": Static("layers", "the last layers, one shot", deepest),\n'
    registry.write_text(text.replace(start, start + entry))
    program = (
        "from skipgpt.cli import main\n"
        "from skipgpt.comparison.method import parse_method\n"
        "print(parse_method('deepest+lora'))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "compare", "--help"],
        env=os.environ | {"PYTHONPATH": str(copy.parent)},
        capture_output=True,
        text=True,
    )
    method, help_text = done.stdout.split("\n", 1)
    assert "deepest" in method, done.stderr
    assert "the last layers, one shot" in help_text


@pytest.mark.parametrize("form", ["html", "md", "json", "terminal"])
def test_an_analysis_is_shown_in_every_form(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyse = example("An analysis", tmp_path).first_token
    monkeypatch.setattr(made_report, "ANALYSES", (*analyses.ANALYSES, lambda of: analyse(of.trace)))
    report = made_report.made()
    text = str(report) if form == "terminal" else rendered(report, form).decode()
    if form == "json":
        assert json.loads(text)["tables"]["first-token"]["findings"]
    elif form == "terminal":
        (line,) = [each for each in text.splitlines() if each.startswith("first-token: ")]
        assert line.endswith("of its modules.")
    else:
        assert "What does the first token run?" in text
        assert "of its modules." in text
