"""What a difference between two systems on the same dialogues says: interval, tests, equivalence, correction.

Intervals are from the paired bootstrap (see `intervals`), p-values from a permutation test (Riezler and Maxwell 2005,
aclanthology.org/W05-0908; Dror et al. 2018, aclanthology.org/P18-1128, say which test serves which measure). "As good
as" needs an equivalence test (two one-sided tests, Schuirmann 1987).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from ..intervals import RESAMPLES, resampled_means

MARGIN = 0.01  # of ROUGE-1: the largest difference that "as good as" allows
LEVEL = 0.05  # below which a p-value counts
DETECTABLE = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))  # standard errors: found at 5 % with 80 % power


@dataclass(frozen=True)
class Difference:
    """One system minus another on the same dialogues, in units of the measure."""

    mean: float
    low: float  # of the 95 % interval
    high: float
    p: float  # of no difference, two-sided, before any correction
    p_equivalent: float  # of a difference of the margin or more: small where the two are as good as each other
    minimum_detectable: float  # the smallest true difference that is found with 80 % power; NaN where nobody can say


def compare(
    one: ArrayLike, other: ArrayLike, *, same: bool = False, margin: float = MARGIN, resamples: int = RESAMPLES
) -> Difference:
    """`one` minus `other`, both scored on the same dialogues, as (dialogues,) or (seeds, dialogues).

    With one seed each the p-value is of a permutation test: under no difference each dialogue's gap may change sign. It
    is about these two checkpoints. With several seeds it is of the bootstrap over seeds and dialogues, shifted to no
    difference, and about the methods. Raises `ValueError` where they are not scored on as many dialogues.
    """
    first, second = (np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (one, other))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"Scores of {first.shape[1]} and {second.shape[1]} dialogues cannot be paired.")
    gaps = first.mean(axis=0) - second.mean(axis=0)
    mean = float(gaps.mean())
    resampled = resampled_means(first, resamples=resamples, stream=1)
    resampled = resampled - resampled_means(second, resamples=resamples, stream=2)
    if len(gaps) == 1:
        return Difference(mean, np.nan, np.nan, 1.0, 1.0, np.nan)
    low, high = np.percentile(resampled, [2.5, 97.5])
    if max(len(first), len(second)) > 1:
        p = (1 + np.sum(np.abs(resampled - mean) >= abs(mean) - 1e-12)) / (resamples + 1)
        error = float(resampled.std())
    else:
        options = {"permutation_type": "samples", "batch": 1000}  # in batches, so that memory stays small
        p = stats.permutation_test((gaps,), np.mean, n_resamples=resamples, rng=0, **options).pvalue
        error = float(stats.sem(gaps))
    error = error if error > 1e-12 else 0.0  # what rounding leaves
    least = 2.0 ** (1 - len(gaps))
    detectable = DETECTABLE * error if error > 0 and least < LEVEL else np.nan
    p_equivalent = max(0.0 if same else tost(mean, error, len(gaps), margin), least)
    return Difference(mean, float(low), float(high), max(float(p), least), p_equivalent, detectable)


def tost(mean: float, error: float, dialogues: int, margin: float = MARGIN) -> float:
    """The p-value of two one-sided t-tests, of a mean with this standard error: that it truly is `margin` or more.

    Without any spread it is the chance that so many dialogues show none of those that would move the mean to `margin`.
    """
    if error == 0:
        return (1 - margin + abs(mean)) ** dialogues if abs(mean) < margin else 1.0  # no gap is larger than 1
    return float(stats.t(dialogues - 1).sf((margin - abs(mean)) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number m (Holm 1979): the smallest times m, the next times m - 1, never falling."""
    rising = pd.Series(p_values, dtype=float).sort_values(kind="stable")
    corrected = (rising * np.arange(len(rising), 0, -1)).cummax().clip(upper=1)
    return corrected.sort_index().tolist()


def verdict(p: float, p_equivalent: float, can_say: bool = True) -> str:
    """What two corrected p-values allow to say."""
    if p < LEVEL:
        return "differ, by less than the margin" if p_equivalent < LEVEL else "differ"
    if p_equivalent < LEVEL:
        return "as good as each other"
    return "no significant difference" if can_say else "too few to say"
