"""`python -m skipgpt`, as `torchrun` and `accelerate launch` start it."""

from skipgpt.cli import main

main()
