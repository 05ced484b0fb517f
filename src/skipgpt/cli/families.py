"""skipgpt families."""

from __future__ import annotations

from skipgpt.cli import options

NAME = "families"
HELP = """List the model families that routers fit into.
""" + options.examples("skipgpt families", "skipgpt families --json")


def run(
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Print the table."""
    from skipgpt.model.families import FAMILIES, VERIFIED

    rows = [
        {"family": name, "layout": row.layout, "skips": row.skips, "verified": VERIFIED}
        for name, row in sorted(FAMILIES.items())
    ]
    lines = [f"{r['family']:12} {r['layout']:28} skips {r['skips']}" for r in rows]
    text = "\n".join([*lines, f"verified on transformers {VERIFIED}"])
    options.emit({"rows": rows}, as_json, text)
