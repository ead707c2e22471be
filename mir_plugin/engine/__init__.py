"""Hidden states of vision and text tokens, one decoder layer after another."""
