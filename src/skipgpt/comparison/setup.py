"""What all methods of a comparison share: base, text, training length, and the dense loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from skipgpt.checkpoint.folder import is_checkpoint, read_info
from skipgpt.comparison.method import DENSE, TRAINED, Method
from skipgpt.comparison.result import Row
from skipgpt.config import (
    BUDGET_NOUNS,
    Budget,
    LoraStage,
    Placement,
    RouterConfig,
    Stage,
    TimedForward,
    TrainConfig,
    recipe,
)
from skipgpt.config.settings import override
from skipgpt.cost import Savings, flops_per_token, measured_machine, overhead, savings
from skipgpt.data import Blocks, load_blocks
from skipgpt.errors import ConfigError
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.closeness import IDENTICAL
from skipgpt.evaluation.perplexity import Perplexity, perplexity
from skipgpt.model.base import load_base
from skipgpt.model.loading.fingerprint import weights_digest
from skipgpt.model.loading.identity import digest_of_settings, settings_of
from skipgpt.model.loading.limits import check_rows
from skipgpt.model.state import execution
from skipgpt.model.surgery import add_routers, hidden_size
from skipgpt.routing.decision import Site
from skipgpt.system.device_profile import Machine
from skipgpt.system.digest import json_digest

OWNED = ("target_sparsity", "budget", "seed", "stages", "recipe")
"""Settings that the comparison itself sets."""

SHARED = (*OWNED, "batch_size", "accumulation", "router_stage.steps", "lora_stage.steps")
"""Settings that are the same for all methods, like those of `data`."""

KEPT = "what was finished is kept: the same command goes on from it"
"""Advice after a comparison that stopped."""

OF_THE_RUN = (
    *("data", "batch_size", "accumulation", "budget_time"),
    *("activation_checkpointing", "log_every", "save_every", "report_to"),
)
"""Settings of the comparison's config that a method's recipe does not override."""


@dataclass(frozen=True, eq=False)
class ComparisonSetup:
    """What all methods of one comparison share.

    Attributes:
        base: hub id, folder, GGUF file or `nano`.
        data: sources of text.
        recipe: recipe of methods that name none.
        settings: dotted settings that apply to every method.
        blocks: the text.
        dense: the base model's result on the held-out text.
        dense_flops: FLOPs per token of the base model at this block size.
        fingerprint: fingerprint of the base's weights and settings.
        width: its hidden size.
        overhead: sizes of routers and stand-ins, as shares of the base's parameters.
        placement: device and dtype.
        budget: what budgets are shares of.
        machine: the speeds that a budget in time goes by; None for other budgets.
        fits: fitted stand-ins and the seconds of fitting, by rank and tokens.
    """

    base: str
    data: list[str]
    recipe: str
    settings: dict[str, Any]
    blocks: Blocks
    dense: Perplexity
    dense_flops: float
    fingerprint: str
    width: int
    overhead: dict[str, float]
    placement: Placement
    budget: Budget = "modules"
    machine: Machine | None = None
    fits: dict[tuple[float, int], tuple[dict[Site, Any], float]] = field(default_factory=dict)

    @property
    def device_and_dtype(self) -> dict[str, str]:
        """Both by name, as `load_base` and `train` take them and cache keys hold them."""
        return {"device": self.placement.device, "dtype": self.placement.dtype}

    @property
    def unit(self) -> str:
        """The unit of budgets, as named in tables."""
        return BUDGET_NOUNS[self.budget]

    @property
    def context(self) -> float:
        """Mean number of tokens that a token attends to, itself included."""
        return (self.blocks.held_out.shape[1] + 1) / 2

    @property
    def timed(self) -> TimedForward:
        """The forward whose seconds are counted."""
        return self.main.budget_time

    def savings(self, model: Any, *, removed: bool = False) -> Savings:
        """What each site of a model saves in the unit of budgets; as `skipgpt.cost.savings`."""
        return savings(model, self.budget, self.context, self.timed, removed=removed)

    @property
    def main(self) -> TrainConfig:
        """The config of methods without recipe and settings of their own."""
        return override(recipe(self.recipe), self.settings)

    def config(self, method: Method, sparsity: float, seed: int) -> TrainConfig:
        """Return the config of one method: its recipe's, with the data, steps and batch of all.

        Training must be equal for a comparison, so a recipe sets everything but its amount.

        Raises:
            ConfigError: a setting that does not exist, or stages that cannot be compared.
        """
        for key, _ in method.settings:
            if key in SHARED or key.startswith(("data.", "budget_time.")):
                raise ConfigError(
                    f"comparing {method}",
                    got=f"a {key} of its own",
                    expected="one for all methods, or rows could not be compared",
                    todo="set it for the comparison",
                )
        main = self.main
        chosen = recipe(method.recipe or self.recipe)
        shared = dataclasses.replace(
            chosen,
            **{name: getattr(main, name) for name in OF_THE_RUN},
            router_stage=dataclasses.replace(chosen.router_stage, steps=main.router_stage.steps),
            lora_stage=main.lora_stage if method.has_lora else LoraStage(),
        )
        if method.kind == "joint":  # one stage, as long as two
            both = main.router_stage.steps + main.lora_stage.steps
            stage = dataclasses.replace(shared.router_stage, steps=both)
            shared = dataclasses.replace(shared, router_stage=stage)
        own = dict(TRAINED[method.kind].settings) if method.kind in TRAINED else {}
        own.setdefault("stages", [*({"fit"} & set(chosen.stages)), "router"])
        if method.recipe is None:
            mine = {
                key: value
                for key, value in self.settings.items()
                if key not in SHARED and (method.has_lora or not key.startswith("lora_stage."))
            }
            shared = override(shared, mine)
        own |= dict(method.settings) | {"target_sparsity": sparsity, "seed": seed}
        if method.kind != DENSE:  # dense has none: one row serves both units
            own["budget"] = self.budget
        config = override(shared, own)
        if config.stages not in (("fit",), ("fit", "router"), ("router",), ("joint",)):
            raise ConfigError(
                "choosing what to compare",
                got=f"stages {', '.join(config.stages)} of {method}",
                expected="fit, router or joint; +lora heals",
            )
        if method.stand_in and not config.router.stand_in:
            raise ConfigError(
                f"comparing {method}",
                got=f"the recipe {config.recipe}, which has no stand-ins (router.stand_in is 0)",
                expected="a rank, or a share of the width",
                todo="set router.stand_in (--set router.stand_in=0.2), or choose another recipe",
            )
        return config

    def routed(self, router: RouterConfig | None = None, seed: int = 0) -> Any:
        """Load the base model again, with new routers."""
        torch.manual_seed(seed)
        model, _ = load_base(self.base, **self.device_and_dtype)
        return add_routers(model, router).eval()

    def held_out(self) -> Tensor:
        """The text that every row is measured on, [N, T]."""
        return subsample_rows(self.blocks.held_out, self.main.data.evaluation_tokens)

    def calibration(self) -> Tensor:
        """The text that thresholds are set on, [N, T]."""
        return subsample_rows(self.blocks.calibration, self.main.data.calibration_tokens)

    def search_text(self) -> Tensor:
        """The training text that static methods choose on, [N, T]."""
        return subsample_rows(self.blocks.train, self.main.router_stage.static_tokens)

    def tokens_trained(self, config: TrainConfig, *stages: Stage) -> int:
        """Return the tokens that these stages train on, repeated ones counted each time."""
        steps = sum(
            (config.lora_stage if stage == "lora" else config.router_stage).steps
            for stage in stages
            if stage != "fit"
        )
        rows = steps * config.batch_size * config.accumulation
        return rows * self.blocks.train.shape[1]

    def keyed(self, **facts: Any) -> tuple[str, dict[str, Any]]:
        """Return the SHA-256 digest of these facts and those that all rows share, and all facts."""
        shared = {"base": self.fingerprint, "text": self.blocks.fingerprint}
        made_of = {**facts, **shared, "where": self.device_and_dtype}
        if self.machine:
            made_of["machine"] = dataclasses.asdict(self.machine)
        return json_digest(made_of, 64), made_of

    def row(
        self, method: Method, sparsity: float, seed: int, measured: Perplexity, **facts: Any
    ) -> Row:
        """Build a row of the result."""
        facts |= self.measured_fields(measured)
        return Row(method=str(method), target=sparsity, seed=seed, **facts)

    def measured_fields(self, measured: Perplexity) -> dict[str, Any]:
        """Return the fields of a row that say what was measured."""
        close = measured.closeness
        return {
            "sparsity": measured.sparsity,
            "nll_per_token": measured.nll_per_token,
            "excess_nll": measured.nll_per_token - self.dense.nll_per_token,
            "flops": self.dense_flops * (1 - measured.sparsity["flops"]),
            "kl_to_dense": close.kl_per_token if close else None,
            "agreement": close.agreement if close else None,
        }


def prepare(
    base: str,
    data: list[str],
    recipe_name: str,
    settings: dict[str, Any],
    budget: Budget = "modules",
    *,
    placement: Placement,
) -> ComparisonSetup:
    """Load the base and the text, and measure the base on it."""
    if taken := [key for key in settings if key in OWNED]:
        raise ConfigError(
            "comparing",
            got=f"the setting {taken[0]}",
            expected="budgets, their unit, seeds, methods and recipe as arguments (--sparsity, "
            "--budget, --seeds, --methods, --recipe)",
        )
    if is_checkpoint(base):
        raise ConfigError(
            "comparing",
            got=f"{base}, a checkpoint",
            expected=f"its base model, {read_info(base).base}",
        )
    config = override(recipe(recipe_name), settings)
    model, tokenizer = load_base(base, device=placement.device, dtype=placement.dtype)
    of_base = f"{weights_digest(model)} {digest_of_settings(settings_of(model, tokenizer))}"
    searched = config.router_stage.static_tokens, config.fit_stage.stand_in_tokens
    most = max(config.train_tokens, *searched)
    blocks = load_blocks(data, tokenizer, config.data, train_tokens=most)
    check_rows("reading the text", model, tokenizer, blocks.train, blocks.held_out)
    machine = measured_machine(model) if budget == "time" else None
    add_routers(model, config.router)
    with execution(model, "dense"):
        dense = perplexity(model, subsample_rows(blocks.held_out, config.data.evaluation_tokens))
    dense = dataclasses.replace(dense, closeness=IDENTICAL)
    flops = flops_per_token(model, context=(blocks.held_out.shape[1] + 1) / 2)
    return ComparisonSetup(
        base,
        data,
        recipe_name,
        settings,
        blocks,
        dense,
        flops,
        of_base,
        hidden_size(model),
        overhead(model),
        placement,
        budget,
        machine,
    )
