"""The documents say what the code does."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import skipgpt
from command import skipgpt as command

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language under the README's quick start."""
    section = (ROOT / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_the_quick_start_runs_word_for_word(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (commands,), (program,) = blocks("bash"), blocks("python")
    for line in commands.strip().splitlines():
        name, *arguments = shlex.split(line)
        assert name == "skipgpt"
        done = command(*arguments, folder=tmp_path)
        assert done.status == 0, (line, done.stderr)
        assert done.stdout.strip()
    # Not a fork of a process that has imported everything: users have none.
    fresh = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert fresh.returncode == 0, fresh.stderr
    assert re.fullmatch(r"skipped \d+\.\d% of all modules", fresh.stdout.strip().splitlines()[-1])


def test_the_command_page_is_the_real_help() -> None:
    pinned = re.search(r"^typer==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    if version("typer") != pinned:
        pytest.skip(f"docs/cli.md is laid out by typer {pinned}; this is {version('typer')}")
    sys.path.insert(0, str(ROOT / "scripts"))
    from write_cli_docs import page

    assert (ROOT / "docs/cli.md").read_text() == page(), "run: python scripts/write_cli_docs.py"


def test_the_page_of_settings_is_what_their_docstrings_say() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    from write_settings_docs import page

    written = (ROOT / "docs/settings.md").read_text()
    assert written == page(), "run: python scripts/write_settings_docs.py"


def test_the_api_page_has_every_public_name() -> None:
    named = re.findall(r"^::: skipgpt\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(skipgpt.__all__)


def test_the_site_has_every_page() -> None:
    pages = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in ROOT.glob("docs/*.md"))


DOCUMENTS = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target
    homes = (ROOT, ROOT / "src", ROOT / "src/skipgpt", ROOT / "tests")
    for name in re.findall(r"`((?:[a-z_]+/)+\w+\.py)`", text):
        assert name in EXAMPLES or any((home / name).is_file() for home in homes), name


EXAMPLES = ("json/decoder.py",)
"""Files of others that a document names."""

PACKAGES = sorted(path.parent for path in (ROOT / "src/skipgpt").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_folder_says_what_it_holds_and_is_not_crowded(package: Path) -> None:
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert said, package
    files = list(package.glob("*.py"))
    if listed := re.findall(r"^ *(\w+\.py)  ", said, flags=re.MULTILINE):
        assert {*listed} == {file.name for file in files} - {"__init__.py"}
    assert len(files) <= 15, (package, len(files))
    for file in files:
        assert len(file.read_text().splitlines()) <= 300, file
