"""Attention of some tokens: split in two steps, in blocks, by rows, over kept keys."""
