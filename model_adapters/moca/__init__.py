"""Modality calibration (MoCa)."""
