"""Static removal: modules taken out for every token, and the searches that choose them.

units.py        what can be removed: whole layers, or modules; constant routers that remove it
search.py       the two searches, without tensors: greedy, or one ranking
suffix_loss.py  losses of many removals, without rerunning the layers before them
"""
