"""Published methods that skipgpt is compared with, on the same text.

Static depth pruning: one choice of layers or modules to remove, the same for every token. A
method is a score of units, of which the least go first, or a search; see `registry.py` for all.

    greedy.py       BlockPruner and SLEB, by the loss that remains
    similarity.py   ShortGPT and LLM-Drop, by how little the residual stream changes
    weights.py      a layer's base weights; refuses quantised ones
"""
