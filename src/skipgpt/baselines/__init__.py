"""What skipgpt is compared with, measured on the same work."""
