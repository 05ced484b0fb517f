"""Evaluation: loss and perplexity on text, benchmarks, and calibration of thresholds."""
