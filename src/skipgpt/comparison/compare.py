"""Compare methods; each is produced once and cached by everything it depends on."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skipgpt.comparison import static, trained
from skipgpt.comparison.method import DENSE, RANDOM, TRAINED, Method, parse_method
from skipgpt.comparison.plot import plot
from skipgpt.comparison.removal import check_reach
from skipgpt.comparison.result import Comparison, Row
from skipgpt.comparison.setup import KEPT, ComparisonSetup, prepare
from skipgpt.config import Budget, Placement, check_budget, check_sparsity
from skipgpt.config import recipe as named_recipe
from skipgpt.config.settings import changed, from_dict, to_dict
from skipgpt.errors import ConfigError
from skipgpt.model.lora import check_targets
from skipgpt.system.atomic import staged, to_json
from skipgpt.system.folder_lock import writing_to
from skipgpt.system.hardware import hardware
from skipgpt.system.progress import advancing
from skipgpt.system.stopping import stoppable
from skipgpt.training.loop.arguments import check_schedule

logger = logging.getLogger("skipgpt")

CACHE_VERSION = 10
"""Increased when the code, or a default in `skipgpt.config`, changes results."""


def compare(
    base: str,
    data: list[str],
    out: str | Path,
    methods: Sequence[str],
    *,
    sparsities: Sequence[float] = (0.25,),
    budget: Budget | None = None,
    seeds: Sequence[int] = (0,),
    dial: Sequence[float] = (),
    recipe: str = "default",
    settings: dict[str, Any] | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> Comparison:
    """Train or compute methods and measure them on the same held-out text.

    Args:
        base: hub id, folder, GGUF file, or `nano`.
        data: sources of text; see `skipgpt.data.read_documents`.
        out: results are cached below it, so that a further method costs only itself; in the end it
            holds `comparison.json`, `comparison.md` and `comparison.svg`.
        methods: in the notation of `skipgpt.comparison.method`.
        sparsities: shares to save.
        budget: their unit: `modules`, the `flops` of a dense forward, or its `time` on this
            machine; if None, that of `settings`, or else of the recipe.
        seeds: random seeds; several give a spread.
        dial: further sparsities that every checkpoint is measured at.
        recipe: recipe of methods that name none.
        settings: dotted settings, as for `skipgpt train`; data, steps and batch apply to all.
        device: where to run.
        dtype: dtype of the base model.

    Raises:
        SkipGPTError: on any failure; what was finished before stays cached.

    Example:
        skipgpt.compare("nano", ["stdlib"], "out/compare", ["dense", "router", "sleb"])
    """
    wanted = list(dict.fromkeys(parse_method(text) for text in methods))
    shared = dict(settings or {})
    named = shared.pop("budget", None)
    budget = check_budget(budget or named or named_recipe(recipe).budget)
    shares = [check_sparsity(sparsity, budget=budget) for sparsity in (*sparsities, *dial)]
    targets = shares[: len(sparsities)]
    if not wanted or not targets or not seeds:
        raise ConfigError("comparing", got="nothing to compare", expected="methods and sparsities")
    out = Path(out).absolute()  # rows hold checkpoint paths, valid from any folder
    with stoppable(f"comparing into {out}", lambda: KEPT), advancing(), writing_to(out):
        placement = Placement(device, dtype, base)
        setup = prepare(base, data, recipe, shared, budget, placement=placement)
        _check(setup, wanted, targets, seeds)
        work = _Work(setup, out)
        rows: list[Row] = []
        asked = list(itertools.product(wanted, targets, seeds))
        with advancing("comparing", unit="row", total=len(asked)) as advance:
            for number, (method, sparsity, seed) in enumerate(asked):
                advance.tell(f"{method} at {sparsity:g}")
                found = work.rows(method, sparsity, seed)
                rows += found
                if dial and method.kind in TRAINED and found[0].checkpoint:
                    rows += work.dial(method, found[0], tuple(dial))
                advance(number + 1, len(asked))
        facts = {
            "base": base,
            "data": data,
            "recipe": recipe,
            "settings": to_dict(setup.main),
            "tokens": setup.dense.tokens,
            "dense_nll_per_token": setup.dense.nll_per_token,
            "dense_flops": setup.dense_flops,
            "budget": budget,
            "sparsities": targets,
            "seeds": list(seeds),
            "dial": list(dial),
            "overhead": setup.overhead,
            "date": datetime.date.today().isoformat(),
            "hardware": hardware(torch.device(device)),
        }
        # Methods without budget or seed, such as dense, give the same rows again.
        once = {(row.method, row.target, row.seed): row for row in rows}
        result = Comparison(tuple(once.values()), facts)
        with staged(out) as stage:
            (stage / "comparison.json").write_text(to_json(result.to_dict()), encoding="utf-8")
            (stage / "comparison.md").write_text(result.to_markdown() + "\n", encoding="utf-8")
            plot(result, stage / "comparison.svg")
        return result


def _check(
    setup: ComparisonSetup,
    methods: Sequence[Method],
    targets: Sequence[float],
    seeds: Sequence[int],
) -> None:
    """Check all methods before the first one runs."""
    for method, sparsity, seed in itertools.product(methods, targets, seeds):
        config = setup.config(method, sparsity, seed)
        check_schedule(config.router_stage.schedule)
        check_schedule(config.lora_stage.schedule)
    check_reach(setup, methods, targets)
    if healed := [method for method in methods if method.has_lora]:
        model = setup.routed()
        for method in healed:
            check_targets(model, setup.config(method, targets[0], seeds[0]).lora_stage)


class _Work:
    """Produces rows, or reads those of an earlier call from the cache."""

    def __init__(self, setup: ComparisonSetup, out: Path) -> None:
        self.setup, self.out = setup, out

    def rows(self, method: Method, sparsity: float, seed: int) -> list[Row]:
        """Return the rows of one method; the base and static removals do not depend on the seed."""
        if not method.lora and method.kind not in TRAINED and method.kind != RANDOM:
            seed = 0
        if method.kind == DENSE:
            sparsity = 0.0
        key = self._key(method, sparsity, seed)
        if (cached := self._read(key)) is not None:
            return cached
        logger.info("%s at %g, seed %d", method, sparsity, seed)
        return self._write(key, self._produce(method, sparsity, seed, key))

    def dial(self, method: Method, row: Row, sparsities: tuple[float, ...]) -> list[Row]:
        """Return the rows of one checkpoint at other budgets."""
        key = self._key(method, row.target, row.seed, sparsities)
        if (cached := self._read(key)) is not None:
            return cached
        return self._write(key, trained.measure_at_sparsities(self.setup, method, row, sparsities))

    def _produce(self, method: Method, sparsity: float, seed: int, key: str) -> list[Row]:
        setup = self.setup
        config = setup.config(method, sparsity, seed)
        name = "".join(c if c.isalnum() or c in "+-." else "-" for c in str(method))
        folder = self.out / "runs" / f"{name[:60]}-{sparsity:g}-seed{seed}-{key[:8]}"
        if method.kind == DENSE and not method.lora:
            return [setup.row(method, 0.0, 0, setup.dense)]
        if method.kind == RANDOM:
            routers = replace(method, kind="router")
            return trained.random_routes(setup, method, self.rows(routers, sparsity, seed)[0])
        if method.kind not in TRAINED:
            healed_in = folder if method.lora else None
            return static.remove(setup, method, config, self.out, healed_in)
        if TRAINED[method.kind].top_k:
            return trained.train_top_k(setup, method, config, folder)
        routed = self.rows(method.without_lora(), sparsity, seed)[0] if method.lora else None
        return trained.train_routes(setup, method, config, folder, routed)

    def _key(self, method: Method, sparsity: float, seed: int, dial: tuple[float, ...] = ()) -> str:
        # Without defaults, so that a new option changes no key.
        config = changed(self.setup.config(method, sparsity, seed))
        made_of = {"version": CACHE_VERSION, "method": str(method), "config": config, "dial": dial}
        return self.setup.keyed(**made_of)[0]

    def _read(self, key: str) -> list[Row] | None:
        path = self.out / "cache" / f"{key}.json"
        if not path.is_file():
            return None
        try:
            rows = [from_dict(Row, row, f"reading {path}") for row in json.loads(path.read_text())]
        except ValueError as error:  # a ConfigError, too
            logger.warning("%s is damaged and made anew: %s", path, error)
            return None
        rows = [_placed(row, lambda folder: str(self.out / folder)) for row in rows]
        # A checkpoint may have been deleted to save space: it is then made again.
        gone = any(row.checkpoint and not Path(row.checkpoint).is_dir() for row in rows)
        return None if gone else rows

    def _write(self, key: str, rows: list[Row]) -> list[Row]:
        with staged(self.out / "cache") as stage:
            # Relative, so that the folder may move.
            kept = [_placed(row, lambda f: str(Path(f).relative_to(self.out))) for row in rows]
            text = to_json([to_dict(row) for row in kept])
            (stage / f"{key}.json").write_text(text, encoding="utf-8")
        return rows


def _placed(row: Row, place: Callable[[str], str]) -> Row:
    return replace(row, checkpoint=place(row.checkpoint)) if row.checkpoint else row
