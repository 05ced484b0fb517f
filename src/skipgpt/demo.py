"""The whole pipeline on the embedded base model, offline, in a few minutes.

Fits routers to `nano` with the standard library's sources, calibrates, heals with LoRA, and
measures all of it against the dense model and against static removal that saves as much and has
stand-ins that are fitted alike.
"""

from __future__ import annotations

import dataclasses
import logging
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skipgpt.baselines.greedy import blockpruner
from skipgpt.checkpoint.loading import load_placed
from skipgpt.config import Budget, DataConfig, Placement, recipe
from skipgpt.config.settings import override
from skipgpt.cost import Savings
from skipgpt.data import load_blocks, read_documents, split_documents
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.closeness import IDENTICAL
from skipgpt.evaluation.perplexity import Perplexity, perplexity
from skipgpt.fitting.stand_ins import fit_stand_ins, fit_to_removal
from skipgpt.generation import generate
from skipgpt.model.base import load_base
from skipgpt.model.state import execution
from skipgpt.model.surgery import add_routers
from skipgpt.removal.units import Unit, constant_routes, sites_of
from skipgpt.report.charts.routing_map import RoutingMap, routing_map
from skipgpt.report.gather import gather
from skipgpt.report.pages.page import to_html
from skipgpt.system.atomic import staged, to_json
from skipgpt.system.folder_lock import writing_to
from skipgpt.system.progress import advancing
from skipgpt.system.stopping import stoppable
from skipgpt.training.run import train
from skipgpt.training.run_start import savings_of

logger = logging.getLogger("skipgpt")

SETTINGS = {
    "fit_stage.tokens": 8192,
    "fit_stage.stand_in_tokens": 8192,
    "lora_stage.steps": 120,
    "batch_size": 8,
    "data.block_size": 256,
    "data.calibration_tokens": 4096,
    "router_stage.static_tokens": 2048,
    "data.evaluation_tokens": 16384,
    "save_every": 1000,
}
PROMPT = "def read_config(path):\n"
PROGRAM = '''import sys


def word_count(path):
    """Return how many words a file holds."""
    with open(path) as file:
        return sum(len(line.split()) for line in file)


for name in sys.argv[1:]:
    print(name, word_count(name))
'''


@dataclass(frozen=True)
class DemoResult:
    """Every number that the demo prints.

    Attributes:
        rows: by method: loss, perplexity and sparsity on the same held-out text.
        static_modules: modules that the static baseline removes, in order of removal.
        samples: greedy continuations of one prompt, dense and sparse.
        map: routing map of a short program.
        target_sparsity: requested sparsity, in the unit `budget`.
        budget: unit of the sparsity.
        seed: random seed.
    """

    rows: dict[str, Perplexity]
    static_modules: list[str]
    samples: dict[str, str]
    map: RoutingMap
    target_sparsity: float
    budget: Budget
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        dense = self.rows["dense"].nll_per_token
        excess = {name: row.nll_per_token - dense for name, row in self.rows.items()}
        plain = dataclasses.asdict(self)
        for name, row in plain["rows"].items():
            row["excess_nll"] = excess[name]
        plain["map"]["sparsity"] = self.map.sparsity
        return plain

    def table(self) -> str:
        """Format the rows as a table."""
        dense = self.rows["dense"].nll_per_token
        lines = [
            "method            nats/token   excess   perplexity   module   params    flops"
            "       KL  agreement"
        ]
        for name, row in self.rows.items():
            close = row.closeness or IDENTICAL
            lines.append(
                f"{name:16}  {row.nll_per_token:10.4f}  {row.nll_per_token - dense:7.4f}"
                f"  {row.perplexity:11.3f}"
                + "".join(f"  {row.sparsity[key]:7.1%}" for key in ("module", "params", "flops"))
                + f"  {close.kl_per_token:7.4f}  {close.agreement:9.1%}"
            )
        return "\n".join(lines)


def demo(
    out: str | Path,
    *,
    sparsity: float = 0.25,
    budget: Budget = "flops",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "auto",
) -> DemoResult:
    """Run the pipeline and write checkpoint, `demo.json` and `report.html` into `out`.

    Args:
        out: output folder; replaced if it exists.
        sparsity: share to save.
        budget: unit of the sparsity.
        seed: the same seed gives the same numbers.
        device: where to run.
        dtype: of the base model.

    Raises:
        SkipGPTError: a step failed.
    """
    out = Path(out)
    again = f"what finished is kept in {out}; the same command starts again"
    with stoppable("running the demo", lambda: again), advancing(), writing_to(out):
        changes = SETTINGS | {"target_sparsity": sparsity, "budget": budget, "seed": seed}
        config = override(recipe("default"), changes)
        logger.info("fitting routers, calibrating, healing with LoRA")
        placement = Placement(device, dtype)
        checkpoint = out / "checkpoint"
        trained = train(
            "nano", ["stdlib"], checkpoint, config, overwrite=True, device=device, dtype=dtype
        )

        logger.info("measuring static removal on the same text")
        model, tokenizer = load_placed(checkpoint, placement, merge=True)
        blocks = load_blocks(["stdlib"], tokenizer, config.data)
        held = subsample_rows(blocks.held_out, config.data.evaluation_tokens)
        base = add_routers(load_base("nano", device=device, dtype=dtype)[0], config.router)
        fit_stand_ins(base, subsample_rows(blocks.train, config.fit_stage.stand_in_tokens))
        text = subsample_rows(blocks.train, config.router_stage.static_tokens)
        units = _removal(base, text, savings_of(base, config), sparsity)
        constant_routes(base, units)
        fit_to_removal(base, blocks.train, config.fit_stage)
        static = perplexity(base, held, closeness_to=base)
        measured = trained.held_out
        rows = {"dense": measured["dense"], "static": static, "fit": measured["fit"]}
        rows["fit+lora"] = measured["lora"]
        logger.info("generating")
        with execution(base, "dense"):
            dense_text = generate(base, tokenizer, PROMPT, max_new_tokens=48).text
        sparse_text = generate(model, tokenizer, PROMPT, max_new_tokens=48).text
        result = DemoResult(
            rows=rows,
            static_modules=[f"{site.module} {site.layer + 1}" for site in sites_of(units)],
            samples={"dense": dense_text, "sparse": sparse_text},
            map=routing_map(model, tokenizer, PROGRAM),
            target_sparsity=sparsity,
            budget=budget,
            seed=seed,
        )
        logger.info("writing the report")
        source, most = _held_out(config.data), config.data.calibration_tokens
        report = gather(checkpoint, [source], config.data, max_tokens=most, placement=placement)
        with staged(out) as stage:
            (stage / "demo.json").write_text(to_json(result.to_dict()), encoding="utf-8")
            (stage / "report.html").write_text(to_html(report), encoding="utf-8")
        return result


def _removal(model: nn.Module, text: Tensor, saved: Savings, target: float) -> list[Unit]:
    """Remove module after module until at least the share asked for is saved."""
    sites = list(saved.by_site)

    def enough(removed: list[Unit]) -> bool:
        gone = set(sites_of(removed))
        return saved.share({site: float(site not in gone) for site in sites}) >= target

    with advancing("searching the static removal", unit="trial", announced=True) as advance:
        return blockpruner(model, text, len(sites), enough=enough, on_step=advance)


def _held_out(config: DataConfig) -> str:
    """Return the path of a held-out source file, long enough to fill a page."""
    documents = split_documents(read_documents(["stdlib"], config), config.held_out)[1]
    long_first = sorted(documents, key=lambda document: len(document.text) < 8192)
    return str(Path(sysconfig.get_paths()["stdlib"], long_first[0].name))
