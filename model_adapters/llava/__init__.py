"""Checkpoints in the original LLaVA and ShareGPT4V formats."""
