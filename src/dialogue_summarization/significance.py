"""How sure a mean over dialogues is."""

import numpy as np
from numpy.typing import ArrayLike


def interval(scores: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean over dialogues (Efron 1979; Koehn 2004 for translation).

    Args:
        scores: One score a dialogue (n,): never one a reference, since references of a dialogue are not independent.
        resamples: How many times n dialogues are drawn with replacement.
        seed: The draws repeat with it.
    """
    values = np.asarray(scores, dtype=float)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)), dtype=np.int32)
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
