"""The first two sections of a page: what the checkpoint is, what it costs and loses."""

from __future__ import annotations

from typing import Any

from skipgpt.evaluation.perplexity import SENSES
from skipgpt.report.charts.curves import agreement_curve, loss_curve
from skipgpt.report.content import Report
from skipgpt.report.pages.markup import (
    amount,
    datum,
    described,
    escaped,
    findings,
    folded,
    further,
    nats,
    percent,
    signed,
    table,
)

SENSE = {
    "module": "of all modules",
    "attn": "of attention",
    "mlp": "of MLPs",
    "params": "of the parameters a token uses",
    "flops": "of FLOPs",
}


def lead(report: Report) -> str:
    """The main result in two sentences."""
    routed, dense = report.measured, report.dense
    excess = routed.nll_per_token - dense.nll_per_token
    skipped = datum("routed.sparsity.module", routed.sparsity["module"], _share(routed.sparsity))
    loss = datum("routed.nll_per_token", routed.nll_per_token, nats(routed.nll_per_token))
    more = datum("excess_nll", excess, nats(abs(excess)))
    than = "more" if excess >= 0 else "less"
    base = datum("dense.nll_per_token", dense.nll_per_token, nats(dense.nll_per_token))
    return (
        f'<p class="lead">Skips <b>{skipped}</b> of its modules on this text, at a loss of '
        f"<b>{loss}</b> nats per token: <b>{more}</b> {than} than its dense base ({base})."
        f"{_agrees(report)}</p>"
    )


def _agrees(report: Report) -> str:
    """Top-1 agreement with the dense base, in a sentence."""
    close = report.measured.closeness
    if not close:
        return ""
    share = datum("routed.closeness.agreement", close.agreement, percent(close.agreement))
    return f" At <b>{share}</b> of tokens both have the same most likely next one."


def what_it_is(report: Report) -> str:
    """Facts from the checkpoint's config."""
    info, router = report.checkpoint, report.checkpoint["router"]
    stages = " → ".join(info["stages"]) or "none"
    reach = f"calibrated from {report.reach}" if report.reach else "none: not calibrated"
    rows = [
        ("Base model", f"<b>{escaped(info['base'])}</b> {_revision(info)}"),
        ("Fingerprint", f"<code>{escaped(info['fingerprint'])}</code>"),
        ("Shape", f"{report.layers} layers, {2 * report.layers} modules"),
        ("Routers", escaped(_router(router))),
        ("Keys and values", escaped(_policy(router["kv"]))),
        ("Trained", f"recipe {escaped(info['recipe'])}, stages {escaped(stages)}"),
        ("Target", report.target),
        ("Budget dial", escaped(reach)),
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
    flops, sparsity = report.cost["flops_per_token"], report.measured.sparsity
    run = 1 - sparsity["flops"]
    routed = datum("cost.flops_per_token.routed", flops["routed"], amount(flops["routed"], "FLOP"))
    dense = datum("cost.flops_per_token.dense", flops["dense"], amount(flops["dense"], "FLOP"))
    return _card(
        "Active compute",
        percent(run),
        f"{routed} of {dense} per token, language-model head and routers included.",
    )


def _memory(report: Report) -> str:
    cost = report.cost
    weights = datum("cost.weight_bytes", cost["weight_bytes"], amount(cost["weight_bytes"], "B"))
    cache = cost["cache"]
    each = cache["bytes"] / cache["tokens"]
    saved = cache["saved"]
    added = sum(cost["added"].values())
    return _card(
        "Resident memory",
        weights,
        "Skipping frees no weights: all of them stay in memory, and routers with their stand-ins "
        f"add {percent(added)} to what a token uses. The cache takes {amount(each, 'B')} per "
        + (
            f"token, {percent(saved)} less than dense." if saved > 0 else "token, as much as dense."
        ),
    )


def _speed(report: Report) -> str:
    ideal, of = report.cost["ideal_speedup"], report.cost["ideal_of"]
    prefill = datum("cost.ideal_speedup.prefill", ideal["prefill"], f"{ideal['prefill']:.2f}x")
    decode = datum("cost.ideal_speedup.decode", ideal["decode"], f"{ideal['decode']:.2f}x")
    return _card(
        "Ideal speed-up",
        prefill,
        f"In prefill of {of['prompt_tokens']:,} tokens, if only FLOPs took time; {decode} in "
        "decoding one sequence, if only reading bytes did. A limit, not a measurement: "
        "<code>skipgpt bench</code> measures.",
    )


def _card(name: str, number: str, said: str) -> str:
    return f"<div><h3>{escaped(name)}</h3><p class='number'>{number}</p><p>{said}</p></div>"


def _losses(report: Report) -> str:
    """Dense and routed side by side, and the sparsity in every sense."""
    rows = []
    for name, key, of in (
        ("dense base", "dense", report.dense),
        ("routed", "routed", report.measured),
    ):
        loss = datum(f"{key}.nll_per_token", of.nll_per_token, nats(of.nll_per_token))
        perplexity = datum(f"{key}.perplexity", of.perplexity, f"{of.perplexity:,.3f}")
        rows.append(
            f'<tr><th scope="row">{name}</th><td class="n">{loss}</td>'
            f'<td class="n">{perplexity}</td></tr>'
        )
    excess = report.measured.nll_per_token - report.dense.nll_per_token
    ratio = report.measured.perplexity / report.dense.perplexity
    rows.append(
        f'<tr><th scope="row">difference</th><td class="n">'
        f'{datum("excess_nll", excess, signed(excess))}</td><td class="n">{ratio:.3f}x</td></tr>'
    )
    sparsity = report.measured.sparsity
    shares = "".join(
        f'<tr><th scope="row">{SENSE[sense]}</th><td class="n">'
        f"{datum(f'routed.sparsity.{sense}', sparsity[sense], percent(sparsity[sense]))}</td></tr>"
        for sense in SENSES
        if sense in sparsity
    )
    return (
        '<div><table><thead><tr><th scope="col">loss</th><th scope="col" class="n">nats per token'
        f'</th><th scope="col" class="n">perplexity</th></tr></thead><tbody>{"".join(rows)}'
        f'</tbody></table><p class="note">Over {report.measured.tokens:,} predicted tokens of this '
        f'text.</p>{_closeness(report)}<table><thead><tr><th scope="col">skipped</th>'
        f'<th scope="col" class="n">share</th></tr></thead><tbody>{shares}</tbody></table></div>'
    )


def _closeness(report: Report) -> str:
    """KL divergence and agreement, as a table; empty where not measured."""
    close = report.measured.closeness
    if not close:
        return ""
    kl = datum("routed.closeness.kl_per_token", close.kl_per_token, nats(close.kl_per_token))
    share = datum("routed.closeness.agreement", close.agreement, percent(close.agreement))
    return (
        '<table><thead><tr><th scope="col">closeness to the dense base</th><th scope="col" '
        'class="n"></th></tr></thead><tbody><tr><th scope="row">KL(dense || routed), nats per '
        f'token</th><td class="n">{kl}</td></tr><tr><th scope="row">top-1 agreement</th>'
        f'<td class="n">{share}</td></tr></tbody></table>'
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


def _revision(info: dict[str, Any]) -> str:
    return f"at {escaped(info['revision'])}" if info.get("revision") else ""


def _share(sparsity: dict[str, float]) -> str:
    return percent(sparsity["module"])
