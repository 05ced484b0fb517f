"""The loop of one stage: transformers' Trainer, its data order, metrics and saved state."""
