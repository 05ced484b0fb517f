"""What a forked command finds done: imports, and what libraries make at their first use."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os

# ruff: noqa: E402
# What is imported stays: to look through it for garbage, again and again, takes seconds.
gc.disable()

import typer.main
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from skipgpt.cli import app

# How the server found this file; commands need not.
_, *places = os.environ["PYTHONPATH"].split(os.pathsep)
if places:
    os.environ["PYTHONPATH"] = os.pathsep.join(places)
else:
    del os.environ["PYTHONPATH"]

for name in (
    "pytest",
    "typer.testing",
    "skipgpt.comparison.compare",
    "skipgpt.convert",
    "skipgpt.export",
    "skipgpt.generation",
    "skipgpt.training.loop.arguments",
    "skipgpt.training.run",
    "skipgpt.training.loop.trainer",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.generation.utils",
    "lm_eval.evaluator",
    "matplotlib.figure",
    "fastapi",
    "uvicorn",
):
    with contextlib.suppress(ImportError):  # of an extra that this environment lacks
        importlib.import_module(name)

# The whole curve is tried by tests of calibration.
importlib.import_module("skipgpt.evaluation.calibrate").CURVE = (0.0, 0.25, 0.5)
get_checkpoint_conversion_mapping("llama")  # compiles a thousand expressions
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(app)

# A collection in a fork would look through all of this, and copy it.
gc.collect()
gc.freeze()
gc.enable()
