"""One measurement of one checkpoint: from a request to a saved result."""
