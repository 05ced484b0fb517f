"""Published methods that skipgpt is compared with, on the same text.

Static depth pruning: one choice of layers or modules to remove, the same for every token. A
method is a function that returns what to remove, first removed first; see `registry.py` for all.

    one_by_one.py   SLEB and BlockPruner
    similarity.py   ShortGPT and LLM-Drop
    weights.py      a layer's base weights, merged for LaCo; refuses quantised ones
"""
