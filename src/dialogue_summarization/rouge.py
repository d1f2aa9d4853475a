"""ROUGE (Lin 2004, aclanthology.org/W04-1013) by the rouge_score package, against one or several references.

Per dialogue F1 with stemming, averaged over its references; then averaged over dialogues. Where each dialogue has three
references, that equals scoring the Hub's 1,500 rows pair by pair. 0 to 1.
"""

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import pandas as pd
from rouge_score import rouge_scorer, tokenize, tokenizers

from . import processes

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
MEAN_OF = ("rouge1", "rouge2", "rougeL")  # what two texts' `agreement` is the mean of


class _CachedTokenizer(tokenizers.Tokenizer):
    """rouge_score's own, with stemming: a text is tokenized once, not once a pair and measure, a word stemmed once."""

    def __init__(self) -> None:
        stemmer = tokenizers.porter.PorterStemmer()
        stemmer.stem = lru_cache(maxsize=100_000)(stemmer.stem)
        self.tokenize = lru_cache(maxsize=100_000)(partial(tokenize.tokenize, stemmer=stemmer))

    def tokenize(self, text: str) -> list[str]:
        raise NotImplementedError  # replaced by the cached one


@lru_cache
def _scorer(types: tuple[str, ...] = TYPES) -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(types), tokenizer=_CachedTokenizer())


def sentences(text: str) -> str:
    """The text with each sentence on a line, as ROUGE-Lsum wants it: split behind `.`, `!` or `?` and white space."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def score(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of each type of one prediction, the mean over its references."""
    return score_all([prediction], [list(references)]).iloc[0].to_dict()


def pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """F1 of every prediction against every reference of its dialogue, a row a pair, a column a type.

    The index is (dialogue, reference), both counted from 0. What was scored before is remembered, since tables, tests
    and figures ask for the same scores.

    Raises:
        ValueError: There are not as many predictions as lists of references, or a dialogue has no reference.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} dialogues.")
    if any(isinstance(several, str) for several in references):
        raise ValueError("References are a list of texts a dialogue, even where there is only one.")
    if empty := [number for number, several in enumerate(references) if not several]:
        raise ValueError(f"No reference for the dialogue in place {empty[0]}.")
    return _pairs(tuple(predictions), tuple(map(tuple, references))).copy()


@lru_cache(maxsize=64)
def _pairs(predictions: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> pd.DataFrame:
    rows, places = [], []
    for number, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        text = sentences(prediction)
        for place, reference in enumerate(several):
            scored = _scorer().score(sentences(reference), text)
            rows.append([scored[name].fmeasure for name in TYPES])
            places.append((number, place))
    index = pd.MultiIndex.from_tuples(places, names=["dialogue", "reference"])
    return pd.DataFrame(rows, index=index, columns=list(TYPES), dtype=float)


def score_all(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """A row a dialogue, a column a type: the mean over its references. Raises what `pairs` raises."""
    return pairs(predictions, references).groupby(level="dialogue").mean().rename_axis(None)


def means(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The means of `score_all` over the dialogues; of several processes each scores its share."""
    both = list(zip(predictions, references, strict=True))
    rows = processes.shared(lambda some: score_all(*zip(*some, strict=True)).to_numpy(), both)
    return {name: float(value) for name, value in pd.DataFrame(rows, columns=list(TYPES)).mean().items()}


def agreement(texts: Sequence[str]) -> np.ndarray:
    """How far each text agrees with the others (texts,): its mean over them of ROUGE-1, -2 and -L F1, averaged.

    Repeated texts count as often as they are there. F1 is the same both ways, so every two are scored once.
    """
    found = np.zeros((len(texts), len(texts)))
    for one, other in itertools.combinations(range(len(texts)), 2):
        scored = _scorer(MEAN_OF).score(texts[one], texts[other])
        found[one, other] = found[other, one] = sum(part.fmeasure for part in scored.values()) / len(scored)
    return found.sum(axis=1) / (len(texts) - 1)


def leave_one_out_best(scores: pd.DataFrame) -> pd.DataFrame:
    """A row a dialogue: the best reference among all but one, the mean over which one is left out.

    So a system, which has k references, is put on a level with a human, who is one of the k and has k - 1.

    Args:
        scores: As `pairs` gives them; dialogues with one reference are left out.
    """
    found = {}
    for name in TYPES:
        wide = np.sort(-scores[name].unstack().to_numpy(), axis=1)  # the best first, missing references last
        count = (~np.isnan(wide)).sum(axis=1)
        second = -wide[:, 1] if wide.shape[1] > 1 else np.full(len(wide), np.nan)
        found[name] = ((count - 1) * -wide[:, 0] + second) / count  # only leaving out the best takes it away
    return pd.DataFrame(found, index=scores.index.unique("dialogue")).dropna().rename_axis(None)


def humans(references: Sequence[Sequence[str]]) -> list[pd.DataFrame]:
    """Each human as if a system: for every place k, the k-th reference scored against the others of its dialogue.

    Returns:
        A table as `pairs` gives it for each k, over the dialogues that have a k-th reference and another one.
    """
    tables = []
    for place in range(max(map(len, references))):
        rows = [number for number, several in enumerate(references) if len(several) > max(place, 1)]
        if not rows:
            break
        others = [[at for at in range(len(references[row])) if at != place] for row in rows]
        texts = [[references[row][at] for at in chosen] for row, chosen in zip(rows, others, strict=True)]
        table = pairs([references[row][place] for row in rows], texts)
        keys = [(row, at) for row, chosen in zip(rows, others, strict=True) for at in chosen]
        table.index = pd.MultiIndex.from_tuples(keys, names=table.index.names)
        tables.append(table)
    return tables
