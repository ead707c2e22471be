"""MIR inside lmms-eval."""
