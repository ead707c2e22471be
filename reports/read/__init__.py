"""Results of MIR and scores of benchmarks, as their tools write them."""
