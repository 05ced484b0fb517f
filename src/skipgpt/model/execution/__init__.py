"""Decides and runs one module.

plan.py    chooses how
run.py     does it
fused.py   does it on a GPU
decode.py  decides decode steps on a CPU
"""
