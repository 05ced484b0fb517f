"""What skipgpt is compared with, measured on the same work.

Static depth pruning: one choice of layers or modules to remove, the same for every token. A
method is a function that returns what to remove, first removed first; see `registry.py` for all.

    similarity.py   how far each unit turns the residual stream
    merging.py      layers that take over the weights of others, and back
    weights.py      weights as numbers: which ones, and why not quantised ones
"""
