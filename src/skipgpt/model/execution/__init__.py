"""How a module is run for the tokens that keep it."""
