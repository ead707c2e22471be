"""One board of checkpoints: MIR, scores, averages, correlations."""
