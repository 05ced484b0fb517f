"""Write docs/cli.md from the commands' own help texts.

python scripts/write_cli_docs.py
"""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from skipgpt.cli import app

WIDTH = {"COLUMNS": "96", "TERMINAL_WIDTH": "96", "NO_COLOR": "1"}


def page() -> str:
    """The whole page."""
    parts = ["# Commands", "Written by `scripts/write_cli_docs.py` from the help texts."]
    for name in ["", *(command.name for command in app.registered_commands)]:
        arguments = [name, "--help"] if name else ["--help"]
        result = CliRunner().invoke(app, arguments, prog_name="skipgpt", env=WIDTH)
        title = f"skipgpt {name}".strip()
        lines = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## {title}\n\n```\n{lines}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs/cli.md").write_text(page())
