"""The metric as the paper states it: tensors in, tensors out."""

from typing import Literal

Outliers = Literal["replace", "remove", "none"]
