"""Attention for some tokens: in two parts, in causal blocks, by sequence, over kept keys.

split.py    a family's own attention in two parts
flat.py     kept queries of all sequences, concatenated
custom.py   the attention function that they are passed to
skip_kv.py  keys of kept tokens only, `kv="skip"`
"""
