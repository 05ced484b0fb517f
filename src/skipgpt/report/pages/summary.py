"""The first two sections of a page: what the checkpoint is, what it costs and loses."""

from __future__ import annotations

from functools import partial
from typing import Any

from skipgpt.report.charts.curves import agreement_curve, loss_curve
from skipgpt.report.content import Report
from skipgpt.report.markup import (
    amount,
    datum,
    described,
    escaped,
    findings,
    folded,
    further,
    in_bytes,
    nats,
    number_table,
    percent,
    signed,
    table,
    times,
)

SENSE = {
    "module": "of all modules",
    "attn": "of attention",
    "mlp": "of MLPs",
    "params": "of the parameters a token uses",
    "flops": "of FLOPs",
    "time": "of the seconds of a forward",
}


def lead(report: Report) -> str:
    """The main result in two sentences."""
    of = report.numbers
    skipped = datum(of, "routed.sparsity.module", percent)
    loss = datum(of, "routed.nll_per_token", nats)
    more = datum(of, "excess_nll", lambda excess: nats(abs(excess)))
    than = "more" if of["excess_nll"] >= 0 else "less"
    base = datum(of, "dense.nll_per_token", nats)
    agrees = ""
    if report.measured.closeness:
        share = datum(of, "routed.closeness.agreement", percent)
        agrees = f" At <b>{share}</b> of tokens both have the same most likely next one."
    return (
        f'<p class="lead">Skips <b>{skipped}</b> of its modules on this text, at a loss of '
        f"<b>{loss}</b> nats per token: <b>{more}</b> {than} than its dense base ({base})."
        f"{agrees}</p>"
    )


def what_it_is(report: Report) -> str:
    """Facts from the checkpoint's config."""
    info, router = report.checkpoint, report.checkpoint["router"]
    revision = f"at {escaped(info['revision'])}" if info.get("revision") else ""
    stages = " → ".join(info["stages"]) or "none"
    reach = f"calibrated from {report.reach}" if report.reach else "none: not calibrated"
    rows = [
        ("Base model", f"<b>{escaped(info['base'])}</b> {revision}"),
        ("Fingerprint", f"<code>{escaped(info['fingerprint'])}</code>"),
        ("Shape", f"{report.layers} layers, {2 * report.layers} modules"),
        ("Routers", escaped(_router(router))),
        ("Keys and values", escaped(_policy(router["kv"]))),
        ("Trained", f"recipe {escaped(info['recipe'])}, stages {escaped(stages)}"),
        ("Target", report.target),
        ("Sparsity range", escaped(reach)),
    ]
    if info.get("quantization"):
        rows.insert(2, ("Weights", f"{escaped(info['quantization'])} (bitsandbytes)"))
    return described(rows)


def what_it_costs(report: Report) -> str:
    """Compute, memory and ideal speed-up, then loss and closeness at each sparsity."""
    curves = loss_curve(report) + agreement_curve(report)
    return (
        f'<div class="cards">{_compute(report)}{_memory(report)}{_speed(report)}</div>'
        f'<div class="pair">{_losses(report)}<div>{curves}</div></div>{_stress(report)}'
    )


def _compute(report: Report) -> str:
    routed, dense = (
        datum(report.numbers, f"cost.flops_per_token.{which}", partial(amount, unit="FLOP"))
        for which in ("routed", "dense")
    )
    return _card(
        "Active compute",
        percent(1 - report.measured.sparsity["flops"]),
        f"{routed} of {dense} per token, language-model head and routers included.",
    )


def _memory(report: Report) -> str:
    cache, saved = report.cost["cache"], report.cost["cache"]["saved"]
    added = sum(report.cost["added"].values())
    return _card(
        "Resident memory",
        datum(report.numbers, "cost.weight_bytes", in_bytes),
        "Skipping frees no weights: all of them stay in memory, and routers with their stand-ins "
        f"add {percent(added)} to what a token uses. The cache takes "
        f"{in_bytes(cache['bytes'] / cache['tokens'])} per token, "
        + (f"{percent(saved)} less than dense." if saved > 0 else "as much as dense."),
    )


def _speed(report: Report) -> str:
    prefill, decode = (
        datum(report.numbers, f"cost.ideal_speedup.{phase}", times)
        for phase in ("prefill", "decode")
    )
    return _card(
        "Ideal speed-up",
        prefill,
        f"In prefill of {report.cost['ideal_of']['prompt_tokens']:,} tokens, if only FLOPs took "
        f"time; {decode} in decoding one sequence, if only reading bytes did. A limit, not a "
        "measurement: <code>skipgpt bench</code> measures.",
    )


def _card(name: str, number: str, said: str) -> str:
    return f"<div><h3>{escaped(name)}</h3><p class='number'>{number}</p><p>{said}</p></div>"


def _losses(report: Report) -> str:
    """Dense and routed side by side, closeness if measured, and the sparsity in every sense."""
    of, routed = report.numbers, report.measured
    ratio = routed.perplexity / report.dense.perplexity
    losses = [
        (
            name,
            datum(of, f"{key}.nll_per_token", nats),
            datum(of, f"{key}.perplexity", "{:,.3f}".format),
        )
        for name, key in (("dense base", "dense"), ("routed", "routed"))
    ]
    losses.append(("difference", datum(of, "excess_nll", signed), f"{ratio:.3f}x"))
    close = [
        (name, datum(of, f"routed.closeness.{key}", shown))
        for name, key, shown in (
            ("KL(dense || routed), nats per token", "kl_per_token", nats),
            ("top-1 agreement", "agreement", percent),
        )
        if routed.closeness
    ]
    shares = [
        (said, datum(of, f"routed.sparsity.{sense}", percent))
        for sense, said in SENSE.items()
        if sense in routed.sparsity
    ]
    return (
        f"<div>{number_table(('loss', 'nats per token', 'perplexity'), losses)}"
        f'<p class="note">Over {routed.tokens:,} predicted tokens of this text.</p>'
        + (number_table(("closeness to the dense base", ""), close) if close else "")
        + f"{number_table(('skipped', 'share'), shares)}</div>"
    )


def _stress(report: Report) -> str:
    of = report.table("stress")
    names = {0: "dense base"}
    knee = of.facts.get("knee")
    marked = [n for n, share in enumerate(of.column("module sparsity")) if n and share == knee]
    names |= {n: f"{percent(float(of.rows[n][0] or 0))} · knee" for n in marked}
    if report.stops[0].asked == 0 and len(of.rows) > 1:
        names[1] = "0.0%, all kept"
    return (
        f"<h3>{escaped(of.question)}</h3>{findings(of)}"
        f"{table(of, marked=marked, names=names)}"
        + folded(report.table("norms").question, table(report.table("norms")))
        + further(report.of_part("cost", "stress", "norms"))
    )


def _router(router: dict[str, Any]) -> str:
    said = f"{router['head']} heads on the {router['input'].replace('_', ' ')}"
    said += ", normalised" * bool(router.get("normalize"))
    rank = router.get("stand_in") or 0
    return said + (f"; stand-ins of rank {rank} where a module is skipped" if rank else "")


def _policy(kv: str) -> str:
    return {
        "dense": "dense: of every token in every layer",
        "skip": "skip: none of a token that skips attention",
    }.get(kv, kv)
