"""Timing: clocks, phases, and the runs that are timed."""
