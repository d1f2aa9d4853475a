"""ROUGE (Lin 2004, aclanthology.org/W04-1013) by the rouge_score package, against one or several references.

F1 with stemming, 0 to 1: per dialogue the mean over its references, then the mean over dialogues. Where each dialogue
has three references, that equals scoring the Hub's 1,500 rows pair by pair.

rouge_score knows no letters but a to z. Where any reference has others, words are those of `texts.words`, which are the
same for a to z, and only words of a to z are stemmed. Composed and decomposed letters count as the same.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import chain

import pandas as pd
from rouge_score import rouge_scorer, tokenize, tokenizers

from .texts import STOPS, composed, has_other_letters, words

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _CachedTokenizer(tokenizers.Tokenizer):
    """rouge_score's own or that of all letters, with stemming: each text is tokenized once, each word stemmed once."""

    def __init__(self, all_letters: bool) -> None:
        stemmer = tokenizers.porter.PorterStemmer()
        stemmer.stem = lru_cache(maxsize=100_000)(stemmer.stem)
        split = _words_of_all_letters if all_letters else tokenize.tokenize
        self._tokenize = lru_cache(maxsize=100_000)(partial(split, stemmer=stemmer))

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(composed(text))


def _words_of_all_letters(text: str, stemmer: tokenizers.porter.PorterStemmer) -> list[str]:
    return [stemmer.stem(word) if word.isascii() and len(word) > 3 else word for word in words(text)]


@lru_cache
def scorer(types: tuple[str, ...] = TYPES, all_letters: bool = False) -> rouge_scorer.RougeScorer:
    """rouge_score's scorer of these types, with its own tokenizer or that of all letters."""
    return rouge_scorer.RougeScorer(list(types), tokenizer=_CachedTokenizer(all_letters))


def scorer_for(references: Iterable[Sequence[str]], types: tuple[str, ...] = TYPES) -> rouge_scorer.RougeScorer:
    """The scorer for dialogues with these references, a list of texts per dialogue."""
    return scorer(types, has_other_letters(chain.from_iterable(references)))


def sentences(text: str) -> str:
    """The text with each sentence on a line, as ROUGE-Lsum wants it.

    Split behind `.`, `!` or `?` and white space, and behind the full stops of other scripts.
    """
    return re.sub(rf"(?<=[.!?])\s+|(?<=[{STOPS}])\s*(?=\w)", "\n", text.strip())


def score_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """F1 of every prediction against every reference of its dialogue: a row per pair, a column per type.

    The index is (dialogue, reference), both counted from 0. Scores are remembered, since tables, tests and figures ask
    for the same ones.

    Raises `ValueError` where there are not as many predictions as lists of references, or a dialogue has no reference.
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
    rows, index, rouge = [], [], scorer_for(references)
    for dialogue, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        text = sentences(prediction)
        for number, reference in enumerate(several):
            scores = rouge.score(sentences(reference), text)
            rows.append([scores[name].fmeasure for name in TYPES])
            index.append((dialogue, number))
    names = pd.MultiIndex.from_tuples(index, names=["dialogue", "reference"])
    return pd.DataFrame(rows, index=names, columns=list(TYPES), dtype=float)


def score_dialogues(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """F1 of every prediction, the mean over its references: a row per dialogue. Raises what `score_pairs` raises."""
    return score_pairs(predictions, references).groupby(level="dialogue").mean().rename_axis(None)
