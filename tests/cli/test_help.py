"""The help texts."""

import re

import pytest
from typer.testing import CliRunner

from skipgpt.cli import app

VERBS = [command.name for command in app.registered_commands]


def _help(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0
    return result.output


def test_the_main_help_names_every_verb() -> None:
    assert {"train", "eval", "generate", "export", "show", "families", "convert"} <= set(VERBS)
    text = _help()
    assert all(re.search(rf"^  {verb}  +\S", text, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_help_text_ends_in_examples_of_its_verb(verb: str) -> None:
    command = next(c for c in app.registered_commands if c.name == verb)
    text, _, examples = command.help.partition("\n\nExamples:\n\n")
    assert text.strip().splitlines()[0].endswith(".")
    lines = examples.split("\n\n")
    assert len(lines) >= 2
    for line in lines:
        assert re.search(rf"^(.*\| |\s+[A-Z_]+=\S+ |\s*)skipgpt {verb}( |$)", line)
    assert "Examples:" in _help(verb)


@pytest.mark.parametrize("verb", VERBS)
def test_each_example_names_only_options_that_exist(verb: str) -> None:
    command = next(c for c in app.registered_commands if c.name == verb)
    text = _help(verb)
    # After a `--` of its own come options of another program.
    own = re.sub(r" -- .*", "", command.help.partition("Examples:")[2])
    used = set(re.findall(r"--[a-z-]+", own))
    offered = set(re.findall(r"--[a-z-]+", text.partition("Options:")[2]))
    assert used <= offered


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_takes_the_common_options(verb: str) -> None:
    text = _help(verb)
    common = {"--json", "--seed", "--quiet", "--traceback"}
    if verb != "demo":
        common |= {"--device", "--dtype"}
    assert all(option in text for option in common)
