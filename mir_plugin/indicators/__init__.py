"""MIR's rivals on the same samples: losses, in-context accuracy, other distances."""
