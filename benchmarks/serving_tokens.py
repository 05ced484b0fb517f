"""Check that vLLM with the plug-in gives the tokens of transformers, for learned routes.

    .venv-serving/bin/python benchmarks/serving_tokens.py FIT25 --data WEB

Greedy, float32, each prompt alone in transformers and all in one batch in vLLM, with and without
prefix cache and chunks of the prompt, twice each. The status is 1 where any token differs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import skipgpt
from record import parser_of, write_record
from skipgpt.checkpoint.folder import read_info
from skipgpt.config import DataConfig
from skipgpt.data import load_blocks
from skipgpt.generation.run import continue_ids
from skipgpt.model.loading.generation_settings import Ends

CHUNK = 96
"""Tokens of a chunk of prefill; all prompts together are longer."""


@torch.no_grad()
def of_transformers(checkpoint: str, given: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Return prompts of different lengths, and what follows each."""
    model, tokenizer = skipgpt.load(checkpoint, merge=True, dtype="float32")
    config = DataConfig(block_size=256, held_out=0.1)
    rows = load_blocks(given.data, tokenizer, config).held_out[: given.prompts]
    prompts = [row[: 32 + 24 * n] for n, row in enumerate(rows)]
    found = []
    for each in prompts:
        done = continue_ids(model, each[None], Ends(()), max_new_tokens=given.new_tokens)
        found.append(done["sequences"][0, len(each) :])
    return [each.tolist() for each in prompts], [each.tolist() for each in found]


def of_vllm(folder: str, prompts: list[Any], tokens: int, **options: Any) -> list[list[Any]]:
    """Return what follows each prompt; twice, so that the second time prompts are in the cache."""
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, **options)
    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    inputs = [{"prompt_token_ids": each} for each in prompts]
    return [
        [list(each.outputs[0].token_ids) for each in llm.generate(inputs, asked, use_tqdm=False)]
        for _ in range(2)
    ]


def main() -> None:
    """Print a line per way to run; fail where tokens differ."""
    parser = parser_of(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    prompts, expected = of_transformers(given.checkpoint, given)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        skipgpt.export_merged(given.checkpoint, f"{folder}/merged", dtype="float32")
        for cached, chunked in itertools.product((False, True), repeat=2):
            options = {"enable_prefix_caching": cached, "max_model_len": 512}
            if chunked:
                options |= {"enable_chunked_prefill": True, "max_num_batched_tokens": CHUNK}
            rounds = of_vllm(f"{folder}/merged", prompts, given.new_tokens, **options)
            equal = [
                sum(mine == other for mine, other in zip(found, expected, strict=True))
                for found in rounds
            ]
            print(
                f"prefix cache {cached}, chunks {chunked}: equal are {equal[0]} and {equal[1]} "
                f"of {len(prompts)}",
                flush=True,
            )
            rows.append({"prefix_cache": cached, "chunks": chunked, "equal": equal})
    write_record(
        given.out,
        rows,
        checkpoint=Path(given.checkpoint).name,
        base=Path(read_info(Path(given.checkpoint)).base).name,
        data=[Path(source).name for source in given.data],
        prompts=len(prompts),
        new_tokens=given.new_tokens,
        dtype="float32",
    )
    sys.exit(any(count < len(prompts) for row in rows for count in row["equal"]))


if __name__ == "__main__":
    main()
