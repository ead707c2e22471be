"""Where a loaded model keeps its decoder layers and its image tokens."""
