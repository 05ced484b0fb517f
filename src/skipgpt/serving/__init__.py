"""Answering requests over HTTP: an OpenAI-compatible server around transformers' `generate`."""
