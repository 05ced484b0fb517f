"""What was skipped, for people: in the terminal and as pages."""
