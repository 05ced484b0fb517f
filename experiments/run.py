"""Run one of the experiments beside this file and write its table into docs/results.md.

    python experiments/run.py retention --base nano --data stdlib
    python experiments/run.py two_stages --base llama-8b --data corpus --device cuda --out out/8b

What an experiment compares, its budgets, seeds and training are in its TOML file; options change
them. Narrowed or changed by one of these, the table is printed only, unless `--page` names a page.
Results are cached in `--out`, so a second call, or one with more methods, is cheap.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import skipgpt
from results_page import write_section
from skipgpt.config.settings import parse_pair

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAMES = sorted(path.stem for path in HERE.glob("*.toml"))


def _portable(arguments: list[str]) -> list[str]:
    """The arguments as another machine can give them: names of files, no place for the output."""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--out":
            next(left)
        elif argument == "--page":
            kept += [argument, _of_repository(next(left))]
        elif not argument.startswith("--out="):
            kept.append(Path(argument).name if Path(argument).exists() else argument)
    return kept


def _of_repository(page: str) -> str:
    """A page's path as it is below the repository, or its name."""
    path = Path(page).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name)


def main() -> None:
    """Read the experiment, compare, write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--base", required=True, help="hub id, folder, or nano")
    parser.add_argument("--data", required=True, nargs="+", help="text, as skipgpt reads it")
    parser.add_argument("--out", type=Path, help="default: out/NAME-BASE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--methods", nargs="+", help="others, or some only")
    parser.add_argument("--sparsity", nargs="+", type=float, help="other budgets")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds")
    parser.add_argument("--dial", nargs="+", type=float, help="other budgets to read at")
    parser.add_argument("--set", nargs="*", default=[], help="settings, as key=value")
    parser.add_argument(
        "--page", type=Path, help="default: docs/results.md, unless the experiment is changed"
    )
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("skipgpt").setLevel(logging.INFO)

    plan: dict[str, Any] = tomllib.loads((HERE / f"{options.name}.toml").read_text())
    base = Path(options.base).name
    out = options.out or Path("out") / f"{options.name}-{base}"
    result = skipgpt.compare(
        options.base,
        options.data,
        out,
        options.methods or plan["methods"],
        sparsities=options.sparsity or plan["sparsity"],
        seeds=options.seeds or plan["seeds"],
        dial=options.dial or plan.get("dial", ()),
        # The budgets of docs/results.md, unless an experiment or --set says another unit.
        settings={"budget": "modules"}
        | plan["settings"]
        | dict(parse_pair(pair) for pair in options.set),
        device=options.device,
        dtype=options.dtype,
    )
    command = f"python experiments/run.py {shlex.join(_portable(sys.argv[1:]))}"
    title = f"{plan['title']}: {base}"
    changed = options.methods or options.sparsity or options.seeds or options.set or options.dial
    if page := options.page or (None if changed else ROOT / "docs" / "results.md"):
        write_section(page, f"{options.name} {base}", title, command, result)
    sys.stdout.write(result.to_terminal() + "\n")


if __name__ == "__main__":
    try:
        main()
    except skipgpt.SkipGPTError as error:
        sys.exit(f"experiments/run.py: {error}")
