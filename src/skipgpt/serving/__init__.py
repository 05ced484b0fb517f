"""Serving checkpoints with the engines that people already run."""
