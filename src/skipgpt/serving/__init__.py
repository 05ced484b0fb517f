"""Serving checkpoints to many users: our own server, and a plug-in of vLLM."""
