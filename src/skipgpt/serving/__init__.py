"""Serving checkpoints over HTTP: a server on transformers, and a plug-in for vLLM."""
