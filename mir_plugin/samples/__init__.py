"""Image-text pairs that are measured on, and where they come from."""
