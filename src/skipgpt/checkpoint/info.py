"""What a checkpoint is: the fields of `skipgpt_config.json`, and the model card made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skipgpt.config import BUDGET_NOUNS, Budget, RouterConfig, TimedForward
from skipgpt.errors import ConfigError

FORMAT_VERSION = 2
"""Version 1 had one curve, in modules, as `curve`."""
LORA = "lora"


@dataclass(frozen=True)
class CheckpointInfo:
    """What `skipgpt_config.json` says.

    Attributes:
        base: hub id, folder, GGUF file or `nano`.
        revision: of the hub id.
        fingerprint: of the base model's weights.
        base_settings: what else decides the base's logits: fields of its config and its
            tokenizer; empty where they were not recorded.
        router: what the routers are.
        quantization: `8bit` or `4bit` where bitsandbytes holds the base's weights, or null.
        recipe: name of the settings that the routers were trained with.
        stages: the stages done, in order.
        target_sparsity: what training aimed for, as a share of the unit `budget`.
        budget: what the target counts, and a sparsity where no unit is named.
        sparsity: measured on held-out text at that target: module, attn, mlp, params, flops and,
            where the machine was profiled, time.
        keep: in the same run, by layer: the share of tokens that ran its `attn` and its `mlp`;
            empty where it was not measured.
        curves: by unit of a budget, pairs of the share saved and the threshold (null keeps
            everything); empty where the model was never calibrated.
        timed: the forward whose seconds `time` counts, or null.
        hardware: on which the curve of `time` was measured; empty where there is none.
        keep_at: what the curves were measured from: a threshold, and the share of tokens that each
            module kept there, by layer, attention before MLP.
        files: sha256 of the other files.
        format_version: of this layout.
    """

    base: str
    fingerprint: str
    router: RouterConfig
    revision: str | None = None
    base_settings: dict[str, Any] = field(default_factory=dict)
    quantization: str | None = None
    recipe: str = "default"
    stages: tuple[str, ...] = ()
    target_sparsity: float = 0.25
    budget: Budget = "modules"
    sparsity: dict[str, float] = field(default_factory=dict)
    keep: dict[str, tuple[float, ...]] = field(default_factory=dict)
    curves: dict[str, tuple[tuple[float, float | None], ...]] = field(default_factory=dict)
    timed: TimedForward | None = None
    hardware: dict[str, str] = field(default_factory=dict)
    keep_at: tuple[tuple[float, ...], ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def curve(self) -> tuple[tuple[float, float | None], ...] | None:
        """The curve of the unit that it was trained for; None where it was never calibrated."""
        return self.curves.get(self.budget)


def check_keep(keep: Mapping[str, Sequence[float]]) -> None:
    """Raise ConfigError unless keep rates are shares, and of as many attentions as MLPs."""
    attn, mlp = keep.get("attn", ()), keep.get("mlp", ())
    fits = set(keep) in (set(), {"attn", "mlp"}) and len(attn) == len(mlp)
    if not fits or not all(0 <= rate <= 1 for rate in (*attn, *mlp)):
        raise ConfigError(
            "reading keep",
            got=repr(dict(keep)),
            expected="as many shares from 0 to 1 of attn as of mlp, or {}",
        )


def check_keep_at(rows: Sequence[Sequence[float]]) -> None:
    """Raise ConfigError unless a threshold and as many shares of attn as of mlp are in each row."""
    fits = len({len(row) for row in rows}) < 2 and all(len(row) % 2 for row in rows)
    if not fits or not all(0 <= rate <= 1 for row in rows for rate in row[1:]):
        raise ConfigError(
            "reading keep_at",
            got=repr([list(row) for row in rows]),
            expected="rows of a threshold and one share from 0 to 1 for each module, or []",
        )


def has_adapter(info: CheckpointInfo) -> bool:
    """Whether a LoRA adapter belongs to the checkpoint; an unlisted folder is ignored."""
    return any(name.startswith(f"{LORA}/") for name in info.files)


def model_card(info: CheckpointInfo) -> str:
    """The generated README.md of a checkpoint."""
    measured = ", ".join(f"{name} {value:.1%}" for name, value in info.sparsity.items())
    given = f', sparsity={info.target_sparsity}, budget="{info.budget}"' if info.curve else ""
    offered = " and ".join(BUDGET_NOUNS[unit] for unit in info.curves)
    control = (
        f" A sparsity counts {BUDGET_NOUNS[info.budget]} unless `budget=` names another unit; this "
        f"checkpoint is calibrated in {offered}."
        if info.curve
        else ""
    )
    held = f" in {info.quantization} (bitsandbytes)" if info.quantization else ""
    return f"""---
library_name: skipgpt
base_model: {info.base}
tags: [skipgpt, dynamic-depth, token-routing]
---

# Routers for {info.base}{held}

Each token decides which attention and MLP modules to run. Stages done: {", ".join(info.stages)};
recipe `{info.recipe}`; target sparsity {info.target_sparsity:.0%} of {BUDGET_NOUNS[info.budget]}.

Measured on held-out text at that target: {measured or "not measured"}. Module sparsity counts
(token, module) pairs; parameter and FLOP sparsity count what is in them.

```python
import skipgpt

model, tokenizer = skipgpt.load("this folder"{given})
```

Routing is deterministic: a module runs where the router's margin is above one global
threshold.{control}
The base model's weights are not part of this folder; its fingerprint is `{info.fingerprint}`.
"""
