"""How far two numbers may lie apart, and why; and how long a test may wait.

Two measurements of one checkpoint can differ in two ways, and a comparison says which of them it means:

* ``SAME_FEATURES``: the features are the same bits, because one process computed them, or processes with the same
  number of threads on the same processor. Only float64 sums are added in another order.
* ``FORWARD``: the features come from float32 forward passes that added in another order: another number of threads,
  another batch size, other vector instructions.
"""

from __future__ import annotations

SAME_FEATURES = 1e-9
"""Relative, of MIR and of a layer's distance: float64 rounding."""

FORWARD = 1e-6
"""Relative, of MIR, whose float32 forward passes differ. The largest that was measured is 2e-8 (docs/reference/
determinism.md); other processors have kernels that could not be tried, so the tolerance is wider."""

HANGS = 1800
"""Seconds after which something hangs; a busy machine may take many times what a quiet one does."""
