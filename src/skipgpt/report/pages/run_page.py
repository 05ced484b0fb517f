"""A training run as a page, also while it is running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skipgpt.analysis.failures import Failure, failures, missed_when_measured
from skipgpt.config import BUDGET_NOUNS
from skipgpt.errors import CheckpointError
from skipgpt.report.charts.run_curves import all_curves, by_stage
from skipgpt.report.markup import described, escaped, nats, percent, sentence, signed
from skipgpt.report.pages.details import settings_of
from skipgpt.report.pages.page_frame import Section, page
from skipgpt.report.run_files import METRICS, RUN, read_run

_SETTINGS = {"router": "router_stage", "joint": "router_stage", "lora": "lora_stage"}
"""Where a config has the number of steps of a stage; stage fit takes none."""
REFRESH = 20
"""Seconds after which the page of an unfinished run reloads."""


def run_in(folder: Path) -> dict[str, Any]:
    """Read a run, which may be going on, once for its summary and its page.

    Raises:
        CheckpointError: the folder holds no run.
    """
    found = read_run(folder)
    if not isinstance(found.get("run"), dict):
        raise CheckpointError(
            f"reading the run in {folder}",
            got=f"no {RUN} that can be read" if folder.is_dir() else "no such folder",
            expected="a folder that `skipgpt train --out` writes to",
        )
    return found


def run_summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return the progress of a run and its last numbers, as plain JSON types.

    Args:
        found: what `run_in` has read.

    Returns:
        `stages` (each with `steps` done, `of`, which stage fit has not, whether it is `finished`,
        the `last` line of metrics.jsonl and the `warnings` that hold for it now), `finished`,
        `held_out` (what `dense` and finished stages measured), `target_sparsity` and the `budget`
        it counts, `base` and `data`.
    """
    run, config = found["run"], found["run"].get("config", {})
    over = run.get("finished", [])
    target, budget = config.get("target_sparsity"), config.get("budget", "modules")
    sense = "module" if budget == "modules" else budget
    held_out = run.get("held_out", {})
    dense = _number(held_out.get("dense", {}).get("nll_per_token"))
    logged = by_stage(found.get("metrics", []))
    stages = {}
    for name in config.get("stages", []):
        lines = logged.get(name, [])
        of = config.get(_SETTINGS[name], {}).get("steps") if name in _SETTINGS else None
        done = of if name in over else max((line["step"] for line in lines), default=0)
        seen: list[Failure] = []
        if of is not None and name != "lora":
            seen += failures(lines, of, target or 0.0, dense)
        skipped = _number(held_out.get(name, {}).get("sparsity", {}).get(sense))
        if skipped is not None and (miss := missed_when_measured(skipped, target or 0.0, budget)):
            seen.append(miss)
        stages[name] = {
            "steps": None if of is None else done,
            "of": of,
            "finished": name in over,
            "last": lines[-1] if lines else None,
            "warnings": [str(each) for each in seen],
        }
    return {
        "stages": stages,
        "finished": bool(stages) and all(name in over for name in stages),
        "held_out": held_out,
        "target_sparsity": target,
        "budget": budget,
        "base": run.get("base"),
        "data": run.get("data"),
    }


def run_page(found: dict[str, Any]) -> str:
    """Render a run as one self-contained HTML page that reloads until the run is over.

    Example:
        Path("run.html").write_text(run_page(run_in(Path("out/nano-25"))))
    """
    summary = run_summary(found)
    rows = [
        (f"Stage {name}", _progress(each) + _last(each["last"]))
        for name, each in summary["stages"].items()
    ]
    state = "The run is over." if summary["finished"] else "The run is not over."
    charts = all_curves(found.get("metrics", []), summary["target_sparsity"] or 0.0)
    measured = _measured(summary["held_out"])
    none = f"<p>No step is logged yet: {METRICS} holds none.</p>"
    sections = [
        Section("progress", "How far is it?", f"<p>{state}</p>{described(rows)}"),
        *([Section("held-out", "What did it come to?", measured)] if measured else []),
        Section("warnings", "Is anything going wrong?", _warnings(summary["stages"])),
        Section("curves", "How does it go?", f'<div class="charts">{charts}</div>' * bool(charts)
                or none),
        Section("settings", "With which settings?", settings_of(found["run"])),
    ]  # fmt: skip
    base = Path(str(summary["base"])).name
    return page(
        f"Routers for {base}, target {summary['target_sparsity'] or 0:.0%} of "
        f"{BUDGET_NOUNS[summary['budget']]}",
        "Training run",
        "",
        sections,
        script="",
        refresh=None if summary["finished"] else REFRESH,
    )


def _warnings(stages: dict[str, Any]) -> str:
    """Warnings of all stages; else that there are none, or that it is too early to judge."""
    said = "".join(
        f'<p class="warning">Stage {escaped(name)}: {sentence(each)}</p>'
        for name, stage in stages.items()
        for each in stage["warnings"]
    )
    judged = all(stage["finished"] for stage in stages.values()) or any(
        stage["of"] and 2 * stage["steps"] > stage["of"] for stage in stages.values()
    )
    none = "No warnings." if judged else "Nothing is judged before a stage is half over."
    return said or f'<p class="fine">{none}</p>'


def _measured(held_out: dict[str, Any]) -> str:
    """Loss and sparsity on held-out text, of the dense base and after each stage."""
    dense = _number(held_out.get("dense", {}).get("nll_per_token"))
    rows = []
    for name, each in held_out.items():
        loss = _number(each.get("nll_per_token"))
        if loss is None:
            continue
        said = f"{nats(loss)} nats per token"
        if name != "dense":
            said += f", {signed(loss - dense)} to dense" if dense is not None else ""
            said += _closeness(each.get("closeness") or {})
            shares = each.get("sparsity", {})
            skipped = ", ".join(f"{kind} {percent(share)}" for kind, share in shares.items())
            said += f"; skipped: {skipped}" if skipped else ""
        rows.append(("Dense base" if name == "dense" else f"Stage {name}", escaped(said)))
    tokens = {each["tokens"] for each in held_out.values() if "tokens" in each}
    on = f"<p>On {max(tokens):,} tokens of held-out text.</p>" if tokens else ""
    return on + described(rows) if rows else ""


def _closeness(measured: dict[str, Any]) -> str:
    kl, agreement = (_number(measured.get(name)) for name in ("kl_per_token", "agreement"))
    if kl is None or agreement is None:
        return ""
    return f", KL to dense {nats(kl)} nats per token, top-1 agreement {percent(agreement)}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _progress(stage: dict[str, Any]) -> str:
    if stage["of"] is None:
        return "finished" if stage["finished"] else "not finished"
    return f"{stage['steps']:,} of {stage['of']:,} steps"


def _last(line: dict[str, Any] | None) -> str:
    shown = [
        f"{said} {line[key]:.4g}"
        for key, said in (("lm_loss", "loss"), ("sparsity", "sparsity"))
        if line and isinstance(line.get(key), int | float)
    ]
    return escaped(f"; last: {', '.join(shown)}") if shown else ""
