"""Compare both policies of keys and values on one base, trained alike: loss and cache memory.

    python benchmarks/kv_policies.py --out benchmarks/results/kv-policies-nano.json
    python benchmarks/kv_policies.py --base FOLDER --data stories.txt --steps 200 200 --out …

Each policy gets its own routers and its own LoRA from the same base, text, seed and steps, is
calibrated to the same module sparsity, and is measured on the same held-out text. Memory is that
of a cache which was really filled, at each context length; `saved` is to be compared with `attn`,
the attention sparsity of the same prefill.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from record import parser_of, write_record
from skipgpt.checkpoint.loading import load
from skipgpt.config import recipe
from skipgpt.config.settings import override
from skipgpt.data import load_blocks
from skipgpt.evaluation.cache_memory import cache_memory
from skipgpt.training.run import train


def measure(policy: str, arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Train one policy and measure it."""
    router, lora = arguments.steps
    config = override(
        recipe(
            "default",
            budget="modules",
            target_sparsity=arguments.sparsity,
            seed=arguments.seed,
        ),
        {
            "router.kv": policy,
            # Stage fit takes kv="dense" only: both policies train from near the dense model.
            "stages": ["router", "lora"],
            "router.stand_in": 0,
            "router_stage.start": "keep",
            "router_stage.learning_rate": 1e-2,
            "router_stage.rate_width": 0,
            "router_stage.budget_softness": 0.0,
            "router_stage.noise": 1.0,
            "router_stage.distill": 0.0,
            "router_stage.steps": router,
            "lora_stage.steps": lora,
            "batch_size": 8,
            "data.block_size": 256,
            "data.evaluation_tokens": 32768,
            "save_every": 1000,
        },
    )
    out = folder / policy
    trained = train(arguments.base, arguments.data, out, config)
    model, tokenizer = load(out, merge=True)
    held = load_blocks(arguments.data, tokenizer, config.data).held_out.flatten()
    memory = {}
    for context in arguments.contexts:
        rows = held[: 4 * context].view(4, context)
        memory[str(context)] = cache_memory(model, rows).to_dict()
    return {
        "policy": policy,
        "dense_nll": trained.held_out["dense"].nll_per_token,
        "router_nll": trained.held_out["router"].nll_per_token,
        "lora_nll": trained.held_out["lora"].nll_per_token,
        "sparsity": trained.held_out["lora"].sparsity,
        "cache": memory,
    }


def main() -> None:
    """Parse, measure, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--base", default="nano")
    parser.add_argument("--data", nargs="+", default=["stdlib"])
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--steps", type=int, nargs=2, default=(100, 200), metavar=("R", "L"))
    parser.add_argument("--contexts", type=int, nargs="+", default=(1024, 2048))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(policy, arguments, Path(folder)) for policy in ("dense", "skip")]
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    settings["base"] = Path(arguments.base).name
    settings["data"] = [Path(source).name for source in arguments.data]
    write_record(arguments.out, rows, **settings)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
