"""Speed and memory of a measurement, run by hand: ``python -m benchmarks``."""
