"""Figures as PNG and PDF."""
