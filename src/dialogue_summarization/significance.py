"""How sure a mean over dialogues is, and what a difference between two systems on the same dialogues says.

Dialogues are the units, never their references: three references of a dialogue say little more than one. Intervals are
from the paired bootstrap (Efron 1979; Koehn 2004, aclanthology.org/W04-3250), p-values from approximate randomization
(Riezler and Maxwell 2005, aclanthology.org/W05-0908; Dror et al. 2018, aclanthology.org/P18-1128, say which test serves
which measure). "As good as" needs an equivalence test (two one-sided tests, Schuirmann 1987).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 10_000
MARGIN = 0.01  # of ROUGE-1: what "as good as" may miss at most
_BLOCK = 1 << 22  # draws held at once


@dataclass(frozen=True)
class Difference:
    """One system minus another on the same dialogues, in units of the measure."""

    mean: float
    low: float  # of the 95 % interval
    high: float
    p: float  # of no difference, two-sided, before any correction
    p_equivalent: float  # of a difference of the margin or more: small where the two are as good as each other
    detectable: float  # the smallest difference that so many dialogues show with 80 % power


def _blocks(dialogues: int, resamples: int) -> Iterator[int]:
    """Sizes of the blocks in which resamples are drawn, so that memory stays small for large test sets."""
    step = max(1, _BLOCK // dialogues)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


@lru_cache(maxsize=4)
def _counts(dialogues: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """How often each resample draws each dialogue, in blocks (resamples, dialogues).

    The same draws serve every measure and system, which makes all comparisons paired.
    """
    generator, blocks = np.random.default_rng(seed), []
    for size in _blocks(dialogues, resamples):
        drawn = generator.integers(dialogues, size=(size, dialogues), dtype=np.int32)
        flat = (drawn + dialogues * np.arange(size, dtype=np.int32)[:, None]).ravel()
        counted = np.bincount(flat, minlength=size * dialogues).reshape(size, dialogues)
        blocks.append(counted.astype(np.min_scalar_type(counted.max())))
    return tuple(blocks)


@lru_cache(maxsize=4)
def _signs(dialogues: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """Random signs, -1 or 1, in blocks (resamples, dialogues)."""
    generator = np.random.default_rng([seed, 0])
    blocks = [
        generator.integers(2, size=(size, dialogues), dtype=np.int8) * np.int8(2) - np.int8(1)
        for size in _blocks(dialogues, resamples)
    ]
    return tuple(blocks)


def resampled_means(scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, system: int = 0) -> np.ndarray:
    """Means over dialogues, and over seeds where there are several, of bootstrap resamples (resamples,).

    Args:
        scores: One score a dialogue (n,), or a row a training seed (seeds, n). Of k seeds k - 1 are drawn, as drawing
            all k would understate their variance by (k - 1) / k (Rao and Wu 1988, doi.org/10.2307/2288945).
        resamples: How many times n dialogues are drawn with replacement.
        seed: The draws repeat with it; for the same seed and n they are the same dialogues.
        system: Its number: two systems share the draws of dialogues, not those of training seeds.
    """
    values = np.atleast_2d(np.asarray(scores, dtype=float))
    seeds, dialogues = values.shape
    means = np.concatenate([block @ values.T for block in _counts(dialogues, resamples, seed)]) / dialogues
    if seeds == 1:
        return means[:, 0]
    drawn = np.random.default_rng([seed, system]).integers(seeds, size=(resamples, seeds - 1))
    return np.take_along_axis(means, drawn, axis=1).mean(axis=1)


def resampled_sums(counts: np.ndarray, resamples: int = RESAMPLES, *, seed: int = 0) -> np.ndarray:
    """Sums over dialogues of bootstrap resamples (resamples, k), of k counts a dialogue (n, k): for corpus measures."""
    blocks = [block @ counts for block in _counts(len(counts), resamples, seed)]
    return np.concatenate(blocks) if blocks else np.empty((0, counts.shape[1]))


def interval(scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean over dialogues, and seeds where there are several.

    Args:
        scores: As `resampled_means` takes them.
        resamples: The number of draws.
        seed: The draws repeat with it.
    """
    low, high = np.percentile(resampled_means(scores, resamples=resamples, seed=seed), [2.5, 97.5])
    return float(low), float(high)


def mean_with_interval(scores: ArrayLike) -> tuple[float, tuple[float, float]]:
    """The mean and its interval over the dialogues that have a value; NaN, which is none, where no dialogue has."""
    values = np.asarray(scores, dtype=float)
    values = values[~np.isnan(values)]
    nothing = float("nan")
    return (float(values.mean()), interval(values)) if len(values) else (nothing, (nothing, nothing))


def compare(
    one: ArrayLike, other: ArrayLike, *, margin: float = MARGIN, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """`one` minus `other`, both scored on the same dialogues, as (n,) or with a row a training seed (seeds, n).

    With one seed each the p-value is of approximate randomization over dialogues, and about these two checkpoints. With
    several it is of the bootstrap over seeds and dialogues, shifted to no difference, and about the methods.

    Raises:
        ValueError: They are not scored on the same number of dialogues.
    """
    first, second = (np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (one, other))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"Scores of {first.shape[1]} and {second.shape[1]} dialogues cannot be paired.")
    gap = first.mean(axis=0) - second.mean(axis=0)
    mean = float(gap.mean())
    drawn = resampled_means(first, resamples=resamples, seed=seed, system=1)
    drawn = drawn - resampled_means(second, resamples=resamples, seed=seed, system=2)
    low, high = np.percentile(drawn, [2.5, 97.5])
    several = max(len(first), len(second)) > 1
    if several:
        p = (1 + np.sum(np.abs(drawn - mean) >= abs(mean) - 1e-12)) / (resamples + 1)
        error = float(drawn.std())
    else:
        p = randomization(gap, resamples=resamples, seed=seed)
        error = float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else 0.0
    same = equivalence(mean, error, len(gap), margin)
    return Difference(mean, float(low), float(high), float(p), same, detectable(error))


def randomization(gap: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The two-sided p-value of approximate randomization: under no difference, each dialogue's gap may change sign.

    Args:
        gap: One difference a dialogue (n,).
        resamples: How many assignments of signs are drawn. The observed one counts as one more, so that p is never 0.
        seed: The draws repeat with it.
    """
    values = np.asarray(gap, dtype=float)
    drawn = np.concatenate([np.abs(block @ values) for block in _signs(len(values), resamples, seed)])
    return float((1 + np.sum(drawn >= abs(values.sum()) - 1e-9)) / (resamples + 1))


def equivalence(mean: float, error: float, dialogues: int, margin: float = MARGIN) -> float:
    """The p-value of two one-sided t-tests: that the true difference is `margin` or more, on either side.

    Below 0.05 the two are equivalent within the margin, which is the case where the 90 % interval lies inside it.

    Args:
        mean: The observed difference.
        error: Its standard error.
        dialogues: How many there are; the tests have one degree of freedom less.
        margin: The largest difference that does not matter.
    """
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    freedom = max(dialogues - 1, 1)
    return float(max(stats.t.sf((mean + margin) / error, freedom), stats.t.cdf((mean - margin) / error, freedom)))


def detectable(error: float, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at 5 % finds with this power, for a standard error of it."""
    return float((stats.norm.ppf(0.975) + stats.norm.ppf(power)) * error)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are (Holm 1979): the smallest times m, the next times m - 1, never falling.

    Deciding each by its corrected value keeps the chance of any false finding among all of them below 5 %.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
