r"""Published benchmarks, through lm-evaluation-harness (extra `eval`).

Read in this order: `benchmark` (dense beside sparse on some tasks), `result` (its scores), `model`
(how a routed model answers the harness), `scoring` (log-likelihoods), `encoding` (its texts as
tokens), `keep_counts` (what its tokens ran), `response_cache`, `tasks` and `local` (where tasks
come from).

The harness cannot discover models of other packages, so its own command runs through ours:

    python -m skipgpt.evaluation.harness --model skipgpt \
        --model_args pretrained=out/nano-25,sparsity=0.25 --tasks piqa
"""
