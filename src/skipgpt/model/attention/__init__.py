"""Attention for some tokens: in two halves, in causal blocks, by sequence, over kept keys."""
