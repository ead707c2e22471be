"""Bridges to the host tools: lmms-eval and VLMEvalKit."""
