"""Data behind pictures of tokens, norms and gaps."""
