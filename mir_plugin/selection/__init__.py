"""Several checkpoints: compare, sweep, watch, choose."""
