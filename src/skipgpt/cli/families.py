"""skipgpt families."""

from __future__ import annotations

from skipgpt.cli.shared import options

NAME = "families"
HELP = """List the supported model families.
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
    from skipgpt.model.families.table import FAMILIES, NEWEST, OLDEST
    from skipgpt.system.tables import aligned

    rows = [
        {
            "family": name,
            "layout": row.layout,
            "skips": row.skips,
            "verified": list(dict.fromkeys([row.since or OLDEST, NEWEST])),
        }
        for name, row in sorted(FAMILIES.items())
    ]
    titles = ("family", "layout", "not computed for a skipped token", "verified on transformers")
    shown = [[*map(str, list(row.values())[:3]), ", ".join(row["verified"])] for row in rows]
    options.emit({"rows": rows}, as_json, aligned([titles, *shown], left=range(len(titles))))
