"""How sure a mean over dialogues is: 95 % intervals by the bootstrap (Efron 1979; Koehn 2004, W04-3250).

Dialogues are the units, never their references: three references of a dialogue say little more than one.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
_DRAWS_AT_ONCE = 1 << 22  # so that memory stays small for large test sets


def interval(scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over dialogues, and over seeds where there are several; NaN for one.

    Args:
        scores: As `resampled_means` takes them.
        resamples: The number of bootstrap resamples.
        seed: Of the draws.
    """
    if np.shape(scores)[-1] < 2:
        return np.nan, np.nan
    return tuple(np.percentile(resampled_means(scores, resamples=resamples, seed=seed), [2.5, 97.5]).tolist())


def mean_with_interval(scores: ArrayLike) -> tuple[float, tuple[float, float]]:
    """The mean and its interval over the dialogues that have a value; NaN where none has."""
    values = np.asarray(scores, dtype=float)
    values = values[~np.isnan(values)]
    return (float(values.mean()), interval(values)) if len(values) else (np.nan, (np.nan, np.nan))


def resampled_means(scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, stream: int = 0) -> np.ndarray:
    """Means over dialogues, and over seeds where there are several, of bootstrap resamples: (resamples,).

    Args:
        scores: One score per dialogue (n,), or a row per training seed (seeds, n). Of k seeds k - 1 are drawn, since
            drawing all k would understate their variance by (k - 1) / k (Rao and Wu 1988, doi.org/10.2307/2288945).
        resamples: How many times n dialogues are drawn with replacement.
        seed: Of the draws; for the same seed and n the same dialogues are drawn, which makes comparisons paired.
        stream: A number: two systems that are compared share the draws of dialogues, and with different streams draw
            training seeds of their own.
    """
    values = np.atleast_2d(np.asarray(scores, dtype=float))
    seeds, dialogues = values.shape
    means = np.concatenate([counts @ values.T for counts in resample_counts(dialogues, resamples, seed)]) / dialogues
    if seeds == 1:
        return means[:, 0]
    drawn = np.random.default_rng([seed, stream]).integers(seeds, size=(resamples, seeds - 1))
    return np.take_along_axis(means, drawn, axis=1).mean(axis=1)


@lru_cache(maxsize=4)
def resample_counts(dialogues: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """How often each resample draws each dialogue, in blocks of (resamples of the block, dialogues)."""
    generator, blocks = np.random.default_rng(seed), []
    step = max(1, _DRAWS_AT_ONCE // dialogues)
    for start in range(0, resamples, step):
        drawn = generator.integers(dialogues, size=(min(step, resamples - start), dialogues), dtype=np.int32)
        counts = np.stack([np.bincount(row, minlength=dialogues) for row in drawn])
        blocks.append(counts.astype(np.min_scalar_type(counts.max())))
    return tuple(blocks)
