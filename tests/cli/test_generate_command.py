"""`skipgpt generate --show-routing`, as a terminal and a script see it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from command import Finished, skipgpt
from runs import make_checkpoint, shared_checkpoint
from skipgpt.report.terminal import escape_controls
from tiny import byte_tokenizer

PROMPT = "naïve \033[31m🙂 cat"
COLOUR = re.compile("\033\\[[\\d;]*m")


def force_colour() -> None:
    os.environ["FORCE_COLOR"] = "1"
    os.environ.pop("NO_COLOR", None)


def refuse_colour() -> None:
    os.environ["FORCE_COLOR"] = os.environ["NO_COLOR"] = "1"


def show_on_a_terminal() -> None:
    os.environ["NO_COLOR"] = "1"
    sys.stdout.isatty = lambda: True  # type: ignore[method-assign]


@pytest.fixture
def checkpoint() -> Path:
    return shared_checkpoint()


def run(checkpoint: Path, *more: object, **options: object) -> Finished:
    done = skipgpt("generate", checkpoint, PROMPT, "--max-new-tokens", 24, *more, **options)
    assert done.status == 0, done.stderr
    return done


@pytest.mark.parametrize("sampling", [(), ("--sample",)], ids=["greedy", "sampled"])
def test_the_text_is_the_same_with_and_without_the_flag(
    checkpoint: Path, sampling: tuple[str, ...]
) -> None:
    plain = run(checkpoint, *sampling)
    for before in (None, refuse_colour):
        shown = run(checkpoint, "--show-routing", *sampling, before=before)
        assert (shown.stdout, shown.stderr) == (plain.stdout, plain.stderr)
    assert plain.stdout.startswith(PROMPT)


def test_colours_are_added_to_the_text_and_nothing_in_it_steers_the_terminal(
    checkpoint: Path,
) -> None:
    plain = run(checkpoint).stdout
    shown = run(checkpoint, "--show-routing", before=force_colour)
    assert len(set(COLOUR.findall(shown.stdout))) > 2
    assert COLOUR.sub("", shown.stdout) == escape_controls(plain)
    assert "\\x1b[31m" in escape_controls(plain)
    assert "\033[31m" not in shown.stdout
    summary, legend = shown.stderr.splitlines()
    assert re.match(r"\[\d+ tokens, [\d.]+% of modules skipped; ", summary)
    assert COLOUR.sub("", legend).startswith("[modules run by a token: 50% or less ")


@pytest.mark.parametrize("flags", [(), ("--show-routing",)], ids=["plain", "routing"])
def test_nothing_steers_a_terminal_without_colours_either(
    checkpoint: Path, flags: tuple[str, ...]
) -> None:
    shown = run(checkpoint, *flags, before=show_on_a_terminal).stdout
    assert shown == escape_controls(run(checkpoint).stdout)
    assert "\\x1b[31m" in shown


def test_quiet_leaves_out_summary_and_legend(checkpoint: Path) -> None:
    done = run(checkpoint, "--show-routing", "--quiet", before=force_colour)
    assert done.stderr == ""
    assert COLOUR.search(done.stdout)


def test_json_lists_the_tokens_with_what_ran(checkpoint: Path) -> None:
    plain = json.loads(run(checkpoint, "--json", "-q").stdout)
    shown = json.loads(run(checkpoint, "--json", "-q", "--show-routing").stdout)
    tokens = shown.pop("tokens")
    assert shown == plain
    assert "".join(token["text"] for token in tokens) == PROMPT + plain["text"]
    assert len(tokens) == plain["prompt_tokens"] + plain["new_tokens"]
    assert tokens[0].keys() == {"text", "prompt", "attn", "mlp", "compute"}
    assert sum(token["prompt"] for token in tokens) == plain["prompt_tokens"]
    shares = [token["compute"] for token in tokens if token["compute"] is not None]
    assert 1 - sum(shares) / len(shares) == pytest.approx(plain["sparsity"], abs=1e-12)
    assert tokens[-1]["compute"] is None


def test_an_empty_prompt_is_refused_in_one_line(checkpoint: Path) -> None:
    done = skipgpt("generate", checkpoint, "", "--show-routing")
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("skipgpt: reading the prompt: got none")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--temperature", "0.7"), "--temperature; expected --sample beside it"),
        (("--seed", "3"), "--seed; expected --sample beside it"),
        (("--sample", "--temperature", "-1"), "--temperature -1.0; expected above 0"),
        (("--sample", "--temperature", "0"), "--temperature 0.0; expected above 0"),
        (("--chat",), "a tokenizer without one"),
        (("--max-new-tokens", "500"), "expected at most 128 tokens in all"),
    ],
)
def test_options_that_change_nothing_or_cannot_be_are_refused(
    checkpoint: Path, flags: tuple[str, ...], said: str
) -> None:
    done = skipgpt("generate", checkpoint, "The cat", *flags)
    assert (done.status, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_a_chat_template_is_used_on_request_and_its_absence_said(
    base_folder: Path, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(base_folder)
    make_checkpoint(base_folder, tmp_path / "checkpoint")
    plain, chat = (
        skipgpt("generate", tmp_path / "checkpoint", "Hi", "--json", *flags)
        for flags in ((), ("--chat",))
    )
    assert "--chat puts it into the model's chat template" in plain.stderr
    assert "--chat" not in chat.stderr
    found = [json.loads(done.stdout)["prompt_tokens"] for done in (plain, chat)]
    assert found == [2, len("<user>Hi")]
