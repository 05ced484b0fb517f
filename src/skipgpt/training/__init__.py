"""Training: stages on transformers' Trainer, and the chain from base model to checkpoint."""
