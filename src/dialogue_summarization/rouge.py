"""ROUGE (Lin 2004, aclanthology.org/W04-1013) by the rouge_score package, against one or several references.

F1 with stemming, 0 to 1: per dialogue the mean over its references, then the mean over dialogues. Where each dialogue
has three references, that equals scoring the Hub's 1,500 rows pair by pair.
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial

import pandas as pd
from rouge_score import rouge_scorer, tokenize, tokenizers

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _CachedTokenizer(tokenizers.Tokenizer):
    """rouge_score's own, with stemming: each text is tokenized once, and each word stemmed once."""

    def __init__(self) -> None:
        stemmer = tokenizers.porter.PorterStemmer()
        stemmer.stem = lru_cache(maxsize=100_000)(stemmer.stem)
        self._tokenize = lru_cache(maxsize=100_000)(partial(tokenize.tokenize, stemmer=stemmer))

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text)


@lru_cache
def scorer(types: tuple[str, ...] = TYPES) -> rouge_scorer.RougeScorer:
    """rouge_score's scorer of these types."""
    return rouge_scorer.RougeScorer(list(types), tokenizer=_CachedTokenizer())


def sentences(text: str) -> str:
    """The text with each sentence on a line, as ROUGE-Lsum wants it: split behind `.`, `!` or `?` and white space."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def score_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """F1 of every prediction against every reference of its dialogue: a row per pair, a column per type.

    The index is (dialogue, reference), both counted from 0. Scores are remembered, since tables, tests and figures ask
    for the same ones.

    Raises:
        ValueError: There are not as many predictions as lists of references, or a dialogue has no reference.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} dialogues.")
    if any(isinstance(several, str) for several in references):
        raise ValueError("References are a list of texts per dialogue, even where there is only one.")
    if empty := [number for number, several in enumerate(references) if not several]:
        raise ValueError(f"No reference for the dialogue in place {empty[0]}.")
    return _score_pairs(tuple(predictions), tuple(map(tuple, references))).copy()


@lru_cache(maxsize=64)
def _score_pairs(predictions: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> pd.DataFrame:
    rows, index = [], []
    for dialogue, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        text = sentences(prediction)
        for number, reference in enumerate(several):
            scores = scorer().score(sentences(reference), text)
            rows.append([scores[name].fmeasure for name in TYPES])
            index.append((dialogue, number))
    names = pd.MultiIndex.from_tuples(index, names=["dialogue", "reference"])
    return pd.DataFrame(rows, index=names, columns=list(TYPES), dtype=float)


def score_dialogues(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """F1 of every prediction, the mean over its references: a row per dialogue. Raises what `score_pairs` raises."""
    return score_pairs(predictions, references).groupby(level="dialogue").mean().rename_axis(None)
