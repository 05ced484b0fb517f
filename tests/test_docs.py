"""The documents say what the code does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import skipgpt

ROOT = Path(__file__).parents[1]
MAIN = "import sys; from skipgpt.cli import main; main()"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language under the README's quick start."""
    section = (ROOT / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_the_quick_start_runs_word_for_word(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "README.md", tmp_path)
    (commands,), (program,) = blocks("bash"), blocks("python")
    for line in commands.strip().splitlines():
        name, *arguments = shlex.split(line)
        assert name == "skipgpt"
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout.strip()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"skipped \d+\.\d% of all modules", done.stdout.strip().splitlines()[-1])


def test_the_command_page_is_the_real_help() -> None:
    pinned = re.search(r"^typer==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    if version("typer") != pinned:
        pytest.skip(f"docs/cli.md is laid out by typer {pinned}; this is {version('typer')}")
    sys.path.insert(0, str(ROOT / "scripts"))
    from write_cli_docs import page

    assert (ROOT / "docs/cli.md").read_text() == page(), "run: python scripts/write_cli_docs.py"


def test_the_api_page_has_every_public_name() -> None:
    named = re.findall(r"^::: skipgpt\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(skipgpt.__all__)


def test_the_site_has_every_page() -> None:
    pages = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("document", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target


def test_the_readme_names_every_package_and_only_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text.split("## File tree")[1].split("\n## ")[0]
    package = ROOT / "src/skipgpt"
    children = {path.name for path in package.iterdir() if path.name != "__pycache__"}
    for child in children - {"__init__.py", "py.typed"}:
        assert child in tree, child
    for name in re.findall(r"`((?:routing|model|training|evaluation)/\w+\.py)`", text):
        assert (package / name).is_file(), name
