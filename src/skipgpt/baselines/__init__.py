"""Published methods that skipgpt is compared with, on the same text.

Static depth pruning: one choice of layers or modules to remove, the same for every token. A
method is a score of units, of which the least go first, or a search; see `registry.py` for all.

    registry.py    all static methods, by their names on the command line
    similarity.py  ShortGPT and LLM-Drop, by how little the residual stream changes
    shortened.py   Shortened LLaMA, by perplexity or a first-order estimate
    greedy.py      BlockPruner and SLEB, by the loss that remains
    laco.py        LaCo, which merges layers
    fisher.py      the second-order costs of stage `fit`, averaged by module
    weights.py     a layer's base weights; refuses quantised ones
    top_k.py       Mixture-of-Depths, which is not static: the top-k tokens of each layer run
"""
