"""ROUGE (Lin 2004, aclanthology.org/W04-1013) by the rouge_score package, against one or several references.

Per dialogue F1 with stemming, averaged over its references; then averaged over dialogues. Where each dialogue has three
references, that equals scoring the Hub's 1,500 rows pair by pair. 0 to 1.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import datasets
import evaluate
import pandas as pd
from rouge_score import rouge_scorer, tokenizers

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _CachedTokenizer(tokenizers.Tokenizer):
    """rouge_score's own tokenizer with stemming, each text tokenized once rather than once a pair and measure."""

    def __init__(self) -> None:
        self.tokenize = lru_cache(maxsize=100_000)(tokenizers.DefaultTokenizer(use_stemmer=True).tokenize)

    def tokenize(self, text: str) -> list[str]:
        raise NotImplementedError  # replaced by the cached one


@lru_cache
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(TYPES), tokenizer=_CachedTokenizer())


def sentences(text: str) -> str:
    """The text with each sentence on a line, as ROUGE-Lsum wants it: split behind `.`, `!` or `?` and white space."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def score(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of each type of one prediction, the mean over its references."""
    scores = [_scorer().score(sentences(reference), sentences(prediction)) for reference in references]
    return {name: sum(pair[name].fmeasure for pair in scores) / len(scores) for name in TYPES}


def score_all(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """A row a dialogue, a column a type.

    Raises:
        ValueError: There are not as many predictions as lists of references, or a dialogue has no reference.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} dialogues.")
    if any(isinstance(several, str) for several in references):
        raise ValueError("References are a list of texts a dialogue, even where there is only one.")
    if empty := [number for number, several in enumerate(references) if not several]:
        raise ValueError(f"No reference for the dialogue in place {empty[0]}.")
    return pd.DataFrame([score(*pair) for pair in zip(predictions, references, strict=True)], columns=list(TYPES))


class Rouge(evaluate.Metric):
    """The scores above behind the interface of Hugging Face's `evaluate`; needs no network, unlike `evaluate.load`.

    `Rouge().compute(predictions=[...], references=[...])`, references being texts or lists of texts.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        several = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
        return {name: float(value) for name, value in score_all(predictions, several).mean().items()}
