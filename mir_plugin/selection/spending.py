"""Looking at data while they come in without more false findings: alpha spending. Plain numbers only.

A difference is looked at on the first 16, 32, 64 … samples, and each look could find one by chance. The error
probability is therefore spent look by look, as a function of the share t of the samples seen (Lan & DeMets 1983, doi
10.1093/biomet/70.3.659): here α·t, which lies between the two classical functions (Kim & DeMets 1987, doi
10.1093/biomet/74.1.149, ρ = 1). That of O'Brien and Fleming leaves a first look of 16 samples hardly anything, which
with 15 degrees of freedom asks for twenty standard errors; that of Pocock takes more from the last look.

What a look may spend, given that no earlier one found anything, follows from the joint distribution of the looks, a
Brownian motion seen at the shares t (Armitage, McPherson & Rowe 1969, doi 10.2307/2343787). The result is a nominal
level for each look. An interval at that level is a repeated confidence interval (Jennison & Turnbull 1989, doi
10.1111/j.2517-6161.1989.tb01433.x): with the full confidence, all looks' intervals hold at once, however it is decided
to stop. Levels meet Student's quantile of each look, as in Jennison & Turnbull 2000, section 4.4.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence


def spent(share: float, alpha: float) -> float:
    """How much of the error probability may be spent when this share of the samples has been seen."""
    return alpha * share


def nominal_levels(alpha: float, looks: Sequence[int]) -> tuple[float, ...]:
    """Two-sided level of the test at each look, so that all looks together err with probability alpha.

    Args:
        looks: numbers of samples, ascending; the last is all.

    >>> nominal_levels(0.05, [100])
    (0.05,)
    >>> [round(level, 4) for level in nominal_levels(0.05, [16, 32, 64, 100])]
    [0.008, 0.01, 0.02, 0.028]
    """
    return levels_of(tuple(spent(n / looks[-1], alpha) for n in looks), tuple(n / looks[-1] for n in looks))


@functools.lru_cache(maxsize=256)
def levels_of(cumulative: tuple[float, ...], shares: tuple[float, ...]) -> tuple[float, ...]:
    """Two-sided nominal levels of looks at these shares, by what is spent up to each of them."""
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    nodes, weights = np.polynomial.legendre.leggauss(400)
    levels = [cumulative[0]]
    bound = min(-ndtri(cumulative[0] / 2), 9.0) * math.sqrt(shares[0])  # of the Brownian motion
    at = bound * nodes
    density = np.exp(-0.5 * at**2 / shares[0]) / math.sqrt(2 * math.pi * shares[0]) * bound * weights
    for (before, now), to_spend in zip(itertools.pairwise(shares), np.diff(cumulative), strict=True):
        spread = math.sqrt(now - before)

        def crossing(limit: float, at=at, density=density, spread=spread) -> float:  # type: ignore[no-untyped-def]
            beyond = ndtr((-limit - at) / spread) + ndtr((at - limit) / spread)
            return float(beyond @ density)

        bound = brentq(lambda limit, spend=to_spend: crossing(limit) - spend, 0.0, 9.0)
        levels.append(float(2 * ndtr(-bound / math.sqrt(now))))
        steps = (bound * nodes[:, None] - at[None, :]) / spread
        moved = np.exp(-0.5 * steps**2) / (spread * math.sqrt(2 * math.pi)) @ density
        at, density = bound * nodes, moved * bound * weights
    return tuple(levels)
