"""Wall-clock benchmarks against the dense model and against the ideal speed-up."""
