"""What skipgpt is compared with, measured on the same work.

Static depth pruning: one choice of layers or modules to remove, the same for every token. A
method is a function that returns what to remove, first removed first; see `registry.py` for all.

    units.py        what can be removed: whole layers, or modules
    static.py       a removal in force: its loss, and routers that say just that
    suffix_loss.py  losses of many removals, without running again what lies in front of them
    announced.py    how long a search will take, said after its first trials
    search.py       the two searches, without a tensor: one after another, or one ranking
    similarity.py   how far each unit turns the residual stream
    merging.py      layers that take over the weights of others, and back
    weights.py      weights as numbers: which ones, and why not quantised ones
"""
