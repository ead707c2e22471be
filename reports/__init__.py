"""Reports that link MIR to benchmark scores."""
