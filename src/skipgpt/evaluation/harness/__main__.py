"""The command of lm-evaluation-harness, with `--model skipgpt` registered."""

from __future__ import annotations

from skipgpt.evaluation.harness import model as _registered  # noqa: F401 - registers the model

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
