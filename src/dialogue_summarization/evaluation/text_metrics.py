"""What ROUGE leaves out, without a network: chrF and BLEU, lengths, novelty, repetition.

All but chrF and BLEU need no reference and are one value per dialogue; those two are of the whole set, as they are
defined (Popović 2015; Papineni et al. 2002), by sacrebleu. BERTScore is in `bertscore`, with the extra of that name.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from ..intervals import mean_with_interval, resample_counts
from ..report import display_name, predictions, with_interval
from ..runs import Run


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: `#Person1#'s` is `person1` and `'s`."""
    return re.findall(r"[\w']+", text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n neighbouring tokens, in order."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def novelty(summary: Sequence[str], dialogue: Sequence[str], n: int) -> float:
    """The share of the summary's n-grams that the dialogue does not have (See et al. 2017); NaN where it has none."""
    known = set(ngrams(dialogue, n))
    return float(np.mean([gram not in known for gram in ngrams(summary, n)] or [np.nan]))


def repetition(tokens: Sequence[str], n: int = 3) -> float:
    """The share of n-grams that stood before in the same text; NaN where it is too short to have one."""
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else np.nan


def most_repeated(tokens: Sequence[str], n: int = 3) -> int:
    """How often the most frequent n-gram stands in a text."""
    return max(Counter(ngrams(tokens, n)).values(), default=0)


def per_dialogue(
    summaries: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """A row per dialogue, a column per measure: `length ratio` is to the references, `compression` of the dialogue.

    NaN where a measure is not defined, as for an empty summary.
    """
    rows = []
    for text, dialogue, several in zip(summaries, dialogues, references, strict=True):
        summary, source = words(text), words(dialogue)
        expected = np.mean([len(words(reference)) for reference in several])
        rows.append(
            {
                "words": len(summary),
                "length ratio": len(summary) / expected if expected else np.nan,
                "compression": len(source) / len(summary) if summary else np.nan,
                "new 1-grams": novelty(summary, source, 1),
                "new 2-grams": novelty(summary, source, 2),
                "repetition": repetition(summary),
            }
        )
    return pd.DataFrame(rows, dtype=float)


def corpus(
    summaries: Sequence[str], references: Sequence[Sequence[str]], resamples: int = 1000
) -> dict[str, tuple[float, tuple[float, float]]]:
    """The chrF and BLEU of all summaries together (0 to 100), with 95 % intervals: the bootstrap of `intervals`."""
    scores = {}
    for name, metric in _metrics(references).items():
        # sacrebleu's own bootstrap has other draws, and fails where every resample scores 0 (empty summaries).
        counts = np.array(metric._extract_corpus_statistics(summaries, None))
        sums = [counts.sum(axis=0)[None], *(drawn @ counts for drawn in resample_counts(len(counts), resamples, 0))]
        whole, *resampled = (float(metric._compute_score_from_stats(list(row)).score) for row in np.concatenate(sums))
        low, high = np.percentile(resampled, [2.5, 97.5])
        scores[name] = (whole, (float(low), float(high)))
    return scores


def signature(references: Sequence[Sequence[str]]) -> str:
    """How chrF and BLEU were computed, as sacrebleu says it."""
    return "; ".join(f"{name} {metric.get_signature()}" for name, metric in _metrics(references).items())


def _metrics(references: Sequence[Sequence[str]]) -> dict[str, Metric]:
    streams = list(itertools.zip_longest(*references))  # all first references, all second ones ...
    return {"chrF": CHRF(references=streams), "BLEU": BLEU(references=streams)}


def describe(
    summaries: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Each measure's value and 95 % interval: chrF, BLEU, and the means of `per_dialogue`."""
    table = per_dialogue(summaries, dialogues, references)
    return corpus(summaries, references) | {name: mean_with_interval(table[name]) for name in table}


def text_table(runs: Sequence[Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row per run: chrF, BLEU and the other text measures with their intervals."""
    rows = {}
    for run in runs:
        measures = describe(predictions(run, test), list(test["dialogue"]), list(test["summaries"]))
        rows[display_name(run)] = {
            name: with_interval(*estimate, ".1f" if name in ("chrF", "BLEU", "words") else ".2f")
            for name, estimate in measures.items()
        }
    return pd.DataFrame(rows).T.rename_axis("run")
