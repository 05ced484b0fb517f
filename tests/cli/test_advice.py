"""Each option that an error names exists in the commands that raise it.

That advice can be followed is tested in `tests/advice`.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from skipgpt.cli import app
from skipgpt.errors import DivergedError, StoppedError

SOURCE = Path(__file__).parents[2] / "src/skipgpt"
LOAD = {"eval", "show", "report", "bench", "export", "generate", "serve"}
RAISED_BY = {
    "benchmark/bench.py": {"bench"},
    "benchmark/subject.py": {"bench"},
    "checkpoint/loading.py": LOAD,
    "checkpoint/folder.py": {"train", "convert"},
    "comparison/removal.py": {"compare"},
    "comparison/setup.py": {"compare"},
    "comparison/method.py": {"compare"},
    "comparison/trained.py": {"compare"},
    "config/budget.py": LOAD,
    "convert/into_checkpoint.py": {"convert"},
    "cost/shares.py": {"train", "compare", "convert"},
    "data/chat.py": {"generate"},
    "data/blocks.py": {"train", "compare", "export", "convert"},
    "data/sources.py": {"train", "compare", "report", "bench", "export", "convert"},
    "evaluation/text_result.py": {"eval"},
    "evaluation/harness/response_cache.py": {"eval"},
    "evaluation/harness/tasks.py": {"eval", "report"},
    "evaluation/windows.py": {"eval"},
    "export/checks.py": {"export"},
    "export/decilm.py": {"export"},
    "export/static.py": {"export"},
    "fitting/gated_passes.py": {"train", "compare"},
    "fitting/fit.py": {"train", "compare"},
    "model/loading/folder.py": LOAD,
    "model/loading/gguf.py": {"train"},
    "model/loading/int8.py": {"train", "eval", "generate"},
    "model/loading/limits.py": {"train", "compare", "export", "convert"},
    "model/lora.py": {"train", "compare"},
    "model/loading/bitsandbytes.py": {"train"},
    "report/writing.py": {"report"},
    "serving/address.py": {"serve"},
    "serving/engine_selection.py": {"serve"},
    "serving/serve.py": {"serve"},
    "config/settings.py": {"train", "compare"},
    "training/fit_stage.py": {"train"},
    "training/launcher.py": {"train"},
    "training/loop/resumable.py": {"train"},
    "training/loop/sampler.py": {"train", "compare"},
    "training/measurement.py": {"train", "compare"},
    "training/run_start.py": {"train"},
    "training/run_record.py": {"train"},
    "training/loop/trainer.py": {"train"},
}
"""Of each module whose errors name options: the commands in which they are read.

`compare`, `demo` and `export` give errors of training advice of their own.
"""
OF_ANOTHER_PROGRAM = {"--merge"}
"""Of llama-gguf-split."""


@functools.cache
def _options(verb: str) -> set[str]:
    import typer

    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return {"--help"} | {name for option in command.params for name in option.opts}


def _advice() -> list[tuple[str, str]]:
    """Of every error that the package raises its words, as far as they are constant."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name.endswith("Error") or name in ("advising", "BadParameter", "_fail"):
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                words = " ".join(text for text in texts if isinstance(text, str))
                found.append((path.relative_to(SOURCE).as_posix(), words))
    return found


def test_every_option_that_an_error_names_exists_in_the_commands_that_raise_it() -> None:
    verbs = {command.name for command in app.registered_commands}
    of_file = {"evaluate": "eval"}
    seen = set()
    for module, words in _advice():
        quoted = re.findall(r"skipgpt (\w+)((?: --[\w-]+)*)", words)
        for verb, named in quoted:  # another command
            if verb in verbs:
                assert set(named.split()) <= _options(verb), (module, words)
        words = re.sub(r"`skipgpt \w+[^`]*`", "", words)
        words = re.sub(r"skipgpt \w+(?: --[\w-]+)+", "", words)
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)) - OF_ANOTHER_PROGRAM
        if not named or module == "cli/__init__.py":
            continue
        seen.add(module)
        own = Path(module).stem if module.startswith("cli/") else ""
        raising = {of_file.get(own, own)} if own else RAISED_BY[module]
        if "(compare: " in words:  # says what to do there
            raising = raising - {"compare"}
        for verb in raising:
            assert named <= _options(verb), (module, verb, words)
    assert set(RAISED_BY) == {each for each in seen if not each.startswith("cli/")}


def test_a_comparison_gives_advice_of_its_own_for_errors_of_training() -> None:
    from skipgpt.comparison.trained import in_comparison

    facts = {"got": "a", "expected": "b", "todo": "use --resume and --overwrite"}
    for kind in (StoppedError, DivergedError):
        told = in_comparison(kind("training", **facts))
        assert type(told) is kind
        assert (told.got, told.expected) == ("a", "b")
        named = set(re.findall(r"--[a-z-]+", told.todo))
        assert named <= _options("compare")
    assert "same command" not in told.todo  # would diverge again
