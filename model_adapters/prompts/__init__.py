"""From a sample to token ids."""
