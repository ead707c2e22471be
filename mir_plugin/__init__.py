"""Modality Integration Rate (MIR, arXiv 2410.07167) of vision-language model checkpoints."""

__version__ = "0.1.0"
