"""MIR inside a training."""
