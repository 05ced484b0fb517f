"""How good a model is: loss and perplexity on text, and the thresholds set there."""
