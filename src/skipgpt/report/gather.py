"""Measure everything that a report shows, on one text."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from skipgpt.analysis import TextTrace, trace_dense, trace_text
from skipgpt.checkpoint.folder import local_folder, read_info
from skipgpt.checkpoint.info import CheckpointInfo
from skipgpt.checkpoint.loading import dense_base_of, load_placed
from skipgpt.config import BUDGET_NOUNS, Budget, DataConfig, Placement
from skipgpt.cost import Forward, flops_per_token, overhead, work
from skipgpt.evaluation.cache_memory import cache_memory
from skipgpt.evaluation.harness.benchmark import Setting, check_tasks, task_scores
from skipgpt.evaluation.perplexity import Perplexity
from skipgpt.evaluation.source_rows import SourceRows, source_rows
from skipgpt.evaluation.windows import mean_context
from skipgpt.model.loading.limits import context_of
from skipgpt.model.sparsity import at_sparsity, clamp_to_curve
from skipgpt.model.state import routing_state
from skipgpt.report.analyses import ANALYSES, Measured
from skipgpt.report.content import Report, Stop
from skipgpt.report.run_files import read_run
from skipgpt.routing.decision import MODULES, Site
from skipgpt.system.hardware import hardware
from skipgpt.system.progress import advancing

logger = logging.getLogger("skipgpt")

DIAL = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""The sparsities of the stress test and of the page's slider."""


def gather(
    folder: str | Path,
    sources: Sequence[str],
    config: DataConfig,
    *,
    title: str = "",
    sparsity: float | None = None,
    budget: Budget | None = None,
    dial: Sequence[float] = DIAL,
    max_tokens: int = 8192,
    batch_size: int = 8,
    tasks: Sequence[str] = (),
    task_dir: str | Path | None = None,
    limit: int = 0,
    placement: Placement | None = None,
) -> Report:
    """Measure a checkpoint on a text, in every way that the report shows.

    Args:
        folder: a checkpoint.
        sources: text sources.
        config: how the text is cut; see `source_rows`.
        title: title of the page; base model and text where empty.
        sparsity: share to save; the trained target where None.
        budget: what `sparsity` and `dial` count; as the checkpoint was trained where None.
        dial: further sparsities; those beyond the calibration curve are left out.
        max_tokens: read no more than this; 0 reads all.
        batch_size: rows per forward.
        tasks: tasks to score at each sparsity and for the dense base; see `task_scores`.
        task_dir: a folder of local tasks.
        limit: first items of each task; 0 is all.
        placement: how models are loaded; on the CPU, as the checkpoint says, where None.

    Raises:
        SkipGPTError: the checkpoint, a source or a task cannot be read, `sparsity` is beyond the
            calibration curve, or tasks are given and the checkpoint is not calibrated.

    Example:
        page = to_html(gather("out/nano-25", ["README.md"], DataConfig()))
    """
    placement = placement or Placement()
    folder = local_folder(folder)
    info = read_info(folder)
    setting = Setting(task_dir=task_dir, limit=limit, placement=placement)
    if tasks:  # before the passes, which take minutes
        check_tasks(folder, tasks, setting)
    unit = budget or info.budget
    model, tokenizer = load_placed(folder, placement, sparsity=sparsity, budget=budget, merge=True)
    read = source_rows(sources, tokenizer, model, config, max_tokens=max_tokens)
    notes = _notes(info, model, read)
    if info.curves and unit != "modules":
        notes.append(f"A sparsity that is asked for is a share of {BUDGET_NOUNS[unit]}.")
    for note in (f"reading {read.said}", *notes):
        logger.info(note)
    own = clamp_to_curve(model, info.target_sparsity) if sparsity is None else sparsity
    asked = _reached(model, own, dial, unit)
    base = dense_base_of(info, model, placement)
    traces: dict[float, TextTrace] = {}
    passes = len(asked) + 1
    with advancing("reading the text", unit="pass", total=passes, announced=True) as advance:
        for n, each in enumerate(asked, 1):
            with at_sparsity(model, each, budget=unit) if len(asked) > 1 else nullcontext():
                traces[each] = trace_text(
                    model, tokenizer, read.rows, batch_size=batch_size, closeness_to=base
                )
            advance(n, passes)
        dense = trace_dense(base, tokenizer, read.rows, batch_size=batch_size)
        advance(passes, passes)
    trace = traces[own]
    for note in (unlike := _unlike(read, trace, tokenizer)):
        logger.warning(note)
    cost, device = _cost(model, trace, read), hardware(next(model.parameters()).device)
    del model, base  # the tasks load them again
    scores = task_scores(folder, tasks, asked, budget=unit, setting=setting) if tasks else {}
    measured = Measured(trace, dense, traces, scores)
    return Report(
        title=title or f"{Path(info.base).name} on {names_of(sources)}",
        facts={
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "hardware": device,
            "sources": list(sources),
            "read": read.said,
            "notes": [*notes, *unlike],
        },
        checkpoint=dataclasses.asdict(info),
        cost=cost,
        dense=Perplexity.of(dense.nll_per_token, trace.measured.tokens),
        stops=tuple(Stop(each, traces[each].keep, traces[each].measured) for each in asked),
        at=asked.index(own),
        trace=trace,
        surprisal=dense.surprisal,
        tables=tuple(analyse(measured) for analyse in ANALYSES),
        run=read_run(folder),
        budget=unit,
    )


def names_of(sources: Sequence[str]) -> str:
    """Name sources for a title."""
    names = [Path(source).name for source in sources]
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _notes(info: CheckpointInfo, model: Any, read: SourceRows) -> list[str]:
    """Notes on how the report was made."""
    notes, context = [], context_of(model)
    if context and sum(map(len, read.rows)) > context:
        notes.append(
            f"The text is longer than the {context:,} tokens that the model reads at once: it is "
            f"read in windows of {read.length}."
        )
    if not info.curves:
        notes.append(
            "This checkpoint is not calibrated, so its sparsity cannot be changed: there is no "
            "loss at other sparsities."
        )
    return notes


def _unlike(read: SourceRows, trace: TextTrace, tokenizer: Any) -> list[str]:
    """A note if the tokens do not decode to the given text, white space aside; else none."""
    special = set(tokenizer.all_special_ids)
    ids = trace.text.ids.tolist()
    pieces = (p for p, token in zip(trace.text.pieces, ids, strict=True) if token not in special)
    given, got = ("".join("".join(parts).split()) for parts in (read.texts, pieces))
    if given.startswith(got.rstrip("\N{REPLACEMENT CHARACTER}")):  # the cut may divide a character
        return []
    return ["The tokenizer does not reproduce the text exactly; the page shows the decoded tokens."]


def _reached(model: nn.Module, own: float, dial: Sequence[float], unit: Budget) -> list[float]:
    """The checkpoint's own sparsity and those of `dial` within its curve, ascending."""
    curves = routing_state(model).curves
    curve = curves.curve(unit) if curves else None
    return sorted({own, *(each for each in dial if curve and curve.reaches(each))})


def _cost(model: Any, trace: TextTrace, read: SourceRows) -> dict[str, Any]:
    """Active compute, resident memory and ideal speed-up, each on its own."""
    rates = trace.keep.double().mean(-1).tolist()
    keep = {
        Site(n, kind): rate
        for n, of_layer in enumerate(rates)
        for kind, rate in zip(MODULES, of_layer, strict=True)
    }
    dense = flops_per_token(model, mean_context(read.rows))
    prefill = Forward(tokens=read.length)
    decode = Forward(tokens=1, cached=read.length)
    ideal = {
        "prefill": work(model, prefill).flops / work(model, prefill, keep).flops,
        "decode": work(model, decode).bytes / work(model, decode, keep).bytes,
    }
    cache = cache_memory(model, read.rows[0][None])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "added": overhead(model),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "flops_per_token": {
            "dense": dense,
            "routed": dense * (1 - trace.measured.sparsity["flops"]),
        },
        "cache": cache.to_dict(),
        "ideal_speedup": ideal,
        "ideal_of": {"prompt_tokens": read.length, "batch_size": 1},
    }
