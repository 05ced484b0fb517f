"""Fitting routers and stand-ins without training: from second-order costs, by regression.

fit.py           stage `fit`: stand-ins, costs, routers
costs.py         what skipping a module costs each token, to second order
gated_passes.py  forwards whose gates have gradients
regression.py    predicts a cost from what a router reads
heads.py         fits a router's head to costs
stand_ins.py     fits stand-ins by least squares
rounds.py        rounds under the routes of the target
corrections.py   what a round corrects in routers
cache.py         fits that are kept for other budgets
"""
