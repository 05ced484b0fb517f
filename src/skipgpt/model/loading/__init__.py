"""Finding a base model, checking it, and loading it."""
