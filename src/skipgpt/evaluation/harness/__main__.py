"""The command of lm-evaluation-harness, with `--model skipgpt` known to it."""

from __future__ import annotations

from skipgpt.evaluation.harness import model as _registered  # noqa: F401 - knows it from now on

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
