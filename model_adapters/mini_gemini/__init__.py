"""Checkpoints in the original Mini-Gemini (MGM) format."""
