"""Models that a host tool or a training has loaded already."""
