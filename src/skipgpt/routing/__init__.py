"""What decides which modules run: routers, decisions, budget and calibration. Needs torch only.

router.py       hidden states in, a keep and a skip logit out
decision.py     from margins to decisions
noise.py        random numbers by row of text
budget.py       how much is kept, and its distance from the target
calibration.py  the threshold that gives a sparsity
curve.py        thresholds by sparsity, in each unit
stand_in.py     what runs where a module is skipped
"""
