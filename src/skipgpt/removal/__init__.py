"""Static removal: modules taken out for every token, and the searches that choose them.

units.py        what can be removed: whole layers, or modules
search.py       the two searches, without tensors: greedy, or one ranking
suffix_loss.py  losses of many removals, without rerunning the layers before them
announced.py    how long a search will take, said from its first trials
static.py       constant routers that give a removal
greedy.py       greedy removal: one unit after another, by loss
"""
