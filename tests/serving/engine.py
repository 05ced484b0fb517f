"""Runs vLLM in a process of its own: a job as JSON on standard input, answers into a file.

    {"out": PATH, "engines": [{"options": {…}, "rounds": [[{"prompt": [3, 4], "tokens": 8}]]}]}

Options are those of `vllm.LLM`. The requests of a round are in flight together; a request may have
a `sparsity`. An answer has `tokens`, `cached` (prompt tokens out of the prefix cache) and
`logprobs`, or the `error` that it was refused with.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any


def parameters(request: dict[str, Any]) -> Any:
    """Greedy, and never stopped early."""
    from vllm import SamplingParams

    extra = {"sparsity": request["sparsity"]} if "sparsity" in request else None
    return SamplingParams(
        temperature=0, max_tokens=request["tokens"], ignore_eos=True, logprobs=1, extra_args=extra
    )


def run_round(engine: Any, requests: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The answers to requests that are in flight together."""
    from vllm.exceptions import VLLMValidationError

    answers: dict[str, dict[str, Any]] = {}
    for number, request in enumerate(requests):
        key = f"{name}-{number}"
        try:
            engine.add_request(key, {"prompt_token_ids": request["prompt"]}, parameters(request))
        except VLLMValidationError as error:
            answers[key] = {"error": str(error)}
    while engine.has_unfinished_requests():
        for done in engine.step():
            if done.finished:
                made = done.outputs[0]
                chosen = zip(made.token_ids, made.logprobs, strict=True)
                answers[done.request_id] = {
                    "tokens": list(made.token_ids),
                    "cached": done.num_cached_tokens,
                    "logprobs": [options[token].logprob for token, options in chosen],
                }
    return [answers[f"{name}-{number}"] for number in range(len(requests))]


def main() -> None:
    """Start each engine, run its rounds, write what came out."""
    job = json.load(sys.stdin)
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    results = []
    for each in job["engines"]:
        llm = LLM(dtype="float32", **each["options"])
        results.append(
            [run_round(llm.llm_engine, made, str(n)) for n, made in enumerate(each["rounds"])]
        )
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
    Path(job["out"]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
