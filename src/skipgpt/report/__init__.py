"""Reports of what was skipped: terminal output, pages and charts."""
