"""True wall-clock against the dense model, and against what skipping can give at best."""
