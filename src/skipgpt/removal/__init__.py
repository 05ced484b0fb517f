"""Static removal: modules taken out for every token, and the searches that choose them.

units.py        what can be removed: whole layers, or modules
search.py       the two searches, without a tensor: one after another, or one ranking
suffix_loss.py  losses of many removals, without running again what lies in front of them
announced.py    how long a search will take, said after its first trials
static.py       a removal in force: its loss, and routers that say just that
greedy.py       the removal whose loss is least, found one unit after another
"""
