"""Published methods that skipgpt is compared with, on the same text.

Static depth pruning: one choice of layers or modules to remove, the same for every token. A
method is a function that returns what to remove, first removed first; see `registry.py` for all.

    similarity.py   cosine of each unit's input and output in the residual stream
    merging.py      merges layers' weights, and undoes it
    weights.py      a layer's base weights; refuses quantised ones
"""
