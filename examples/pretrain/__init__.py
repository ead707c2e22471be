"""Pre-training of a LLaVA-style model, and what MIR does in it."""
