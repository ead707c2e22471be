"""The metric as the paper states it: tensors in, tensors out."""
