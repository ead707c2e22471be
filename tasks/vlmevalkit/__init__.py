"""MIR inside VLMEvalKit."""
