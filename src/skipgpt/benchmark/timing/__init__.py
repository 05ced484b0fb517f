"""Timing: clocks, phases, and the runs that are timed.

phases.py      prefill, decode, and both in `generate`
candidate.py   what is timed in one cell of the grid
clock.py       time and memory of runs that alternate
cuda_graph.py  decoding as a CUDA graph
auto_trace.py  what execution `auto` ran in each module
"""
