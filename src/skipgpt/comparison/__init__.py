"""Methods side by side: same base, same text, same training tokens, same measured budget.

Read in this order: `method` (what can be compared), `setup` (what they share), `trained` and
`static` (how each is made and measured), `compare` (all of it, cached), `result` and `plot`.
"""
