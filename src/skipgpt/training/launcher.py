"""Checks what a launcher asks for: the rest would fail late, or train something else."""

from __future__ import annotations

import os

from skipgpt.errors import ConfigError
from skipgpt.system.distributed import in_lockstep, layout

_DOING = "reading how the launcher spreads the run"


def check_launcher(device: str) -> None:
    """Raise ConfigError at a configuration of `accelerate launch` that a run does not support."""
    told = os.environ.get
    if told("ACCELERATE_USE_MEGATRON_LM") == "true":
        raise _refused("Megatron-LM", "DDP, FSDP2 or DeepSpeed ZeRO", "ddp.yaml")
    if told("ACCELERATE_USE_PARALLELISM_CONFIG") == "true":
        raise _refused(
            "a parallelism_config",
            "data parallelism or sharding, no tensor parallelism",
            "fsdp2.yaml",
        )
    if layout() != "fsdp":
        return
    version, wrap = told("FSDP_VERSION", "1"), told("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    if version != "2":
        raise _refused(f"FSDP version {version}", "fsdp_version: 2", "fsdp2.yaml")
    if wrap != "TRANSFORMER_BASED_WRAP":
        raise _refused(wrap, "TRANSFORMER_BASED_WRAP, one shard group per layer", "fsdp2.yaml")
    if told("FSDP_OFFLOAD_PARAMS") == "true" and device == "cpu":
        raise _refused("fsdp_offload_params on a CPU", "parameters that stay there", "fsdp2.yaml")


def check_whole(quantization: str | None) -> None:
    """Raise ConfigError if the base is quantised and the launcher shards weights.

    FSDP2 and ZeRO-3 do not support that.
    """
    if quantization and (layout() == "fsdp" or in_lockstep()):
        raise ConfigError(
            _DOING,
            got=f"a base in {quantization} for FSDP2 or ZeRO-3",
            expected="weights that are not quantised, or whole on each process",
            todo="use configs/accelerate/ddp.yaml, or leave out --quantize",
        )


def _refused(got: str, expected: str, file: str) -> ConfigError:
    todo = f"use configs/accelerate/{file}"
    return ConfigError(_DOING, got=got, expected=expected, todo=todo)
