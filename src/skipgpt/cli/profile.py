"""skipgpt profile."""

from __future__ import annotations

from skipgpt.cli.shared import options

NAME = "profile"
HELP = """Measure this machine once, for execution `auto` and for `--budget time`.

Takes a few seconds; nothing else should run meanwhile. The figures go to the cache folder of the
user ($SKIPGPT_CACHE, else $XDG_CACHE_HOME/skipgpt, else ~/.cache/skipgpt), one file per device,
dtype and number of threads. Without them execution `auto` uses the figures of a typical machine,
and `--budget time` is refused.
""" + options.examples("skipgpt profile", "skipgpt profile --device cuda --dtype bfloat16 --json")


def run(
    as_json: options.Json = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Measure, keep, print."""
    options.begin(quiet=quiet, seed=seed)
    import dataclasses

    import torch

    from skipgpt.benchmark.profile import profile_machine
    from skipgpt.model.base import check_device, choose_dtype
    from skipgpt.system.device_profile import ANOTHER_CACHE, path_of, store_profile
    from skipgpt.system.folder_lock import writing_file
    from skipgpt.system.progress import advancing
    from skipgpt.system.stopping import NOTHING_KEPT, stoppable

    kind = choose_dtype(dtype, check_device(device))
    where = torch.device(device)
    with (
        stoppable("profiling this machine", lambda: NOTHING_KEPT),
        writing_file(path_of(where, kind), ANOTHER_CACHE),
        advancing("measuring"),
    ):
        machine = profile_machine(where, kind)
        path = store_profile(machine, where, kind)
    lines = [
        f"products       {machine.flops / 1e9:,.0f} GFLOP/s",
        f"weights        {machine.bandwidth / 1e9:,.1f} GB/s",
        f"packing        {machine.attn_packing * 1e6:,.0f} µs for attention, "
        f"{machine.mlp_packing * 1e6:,.0f} µs for an MLP",
        f"kept in {path}",
    ]
    options.emit({**dataclasses.asdict(machine), "path": str(path)}, as_json, "\n".join(lines))
