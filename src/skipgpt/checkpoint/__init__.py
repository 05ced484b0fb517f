"""Checkpoints: their folder, what they say about themselves, their tensors, loading and saving."""
