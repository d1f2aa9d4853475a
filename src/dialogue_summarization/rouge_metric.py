"""ROUGE behind the interface of Hugging Face's `evaluate`: a module of its own, since importing that takes seconds."""

from collections.abc import Sequence

import datasets
import evaluate

from .rouge import score_dialogues


class Rouge(evaluate.Metric):
    """The scores of module `rouge` as a metric of `evaluate`; needs no network, unlike `evaluate.load`.

    `Rouge().compute(predictions=[...], references=[...])`, references being texts or lists of texts.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        forms = (datasets.Sequence(text), text)
        features = [datasets.Features({"predictions": text, "references": form}) for form in forms]
        return evaluate.MetricInfo(description=__doc__, citation="Lin 2004, W04-1013", features=features)

    def _compute(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        several = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
        return {name: float(value) for name, value in score_dialogues(predictions, several).mean().items()}
