"""Weights as they are stored, and how they reach a module."""
