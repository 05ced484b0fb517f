"""Assisted generation of the dense model, drafted by the same weights: cheaper, with equal tokens?

    python benchmarks/lossless.py CHECKPOINT --data TEXT

Drafts skip modules, or hold their weights in 8 bits, or both; the dense model verifies what they
draft, so that greedy tokens are its own. Decoding of one sequence, in alternation with dense.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from skipgpt.benchmark.subject import subject_of_checkpoint
from skipgpt.benchmark.timing.clock import Task, alternate
from skipgpt.benchmark.timing.phases import growing_cache
from skipgpt.generation.run import continue_ids
from skipgpt.model.loading.generation_settings import Ends
from skipgpt.routing.decision import KEEP_ALL

DRAFTS = {"dense-int8": (0.0,), "sparse-int8": (0.1, 0.25), "sparse": (0.4, 0.6)}


def main() -> None:
    """Run and print a line per draft."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--drafted", default="2,4,6", help="tokens per round")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    subject = subject_of_checkpoint(
        given.checkpoint, given.data, tokens=given.prompts * given.prompt_tokens
    )
    prompts = subject.prompts(given.prompts, given.prompt_tokens).split(1)
    dense = subject.dense

    def run(**how: object) -> list[list[int]]:
        return [
            continue_ids(
                dense,
                ids,
                Ends(()),
                max_new_tokens=given.new_tokens,
                past_key_values=growing_cache(dense),
                **how,
            )["sequences"][0].tolist()
            for ids in prompts
        ]

    def assisted(draft: object, count: int) -> list[list[int]]:
        settings = draft.generation_config
        settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = count, "constant"
        settings.assistant_confidence_threshold = 0.0
        return run(assistant_model=draft)

    wanted = run()
    for kind, shares in DRAFTS.items():
        for share in shares:
            rule = subject.rule(share) if share else KEEP_ALL
            draft = subject.executing(kind, rule)
            for count in map(int, given.drafted.split(",")):
                verified = []
                hook = dense.register_forward_hook(lambda *_, seen=verified: seen.append(1))
                equal = assisted(draft, count) == wanted
                hook.remove()
                tokens = given.prompts * given.new_tokens
                seconds = alternate(
                    {
                        "dense": Task(lambda _: run()),
                        "assisted": Task(lambda _, d=draft, n=count: assisted(d, n)),
                    },
                    given.repeats,
                    torch.device("cpu"),
                )
                ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
                print(
                    f"{kind} at {share:.0%} of FLOPs, {count} drafted: "
                    f"{tokens / len(verified):.2f} tokens per verification, "
                    f"{statistics.median(ratios):.2f}x, tokens equal: {equal}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
