"""Recipes of training that were meant to bring one model with beams to what minimum Bayes risk reaches; none did.

Only their scores are kept: what drew summaries and trained on them is in commit ca4be0b.
"""

import numpy as np
import pandas as pd

from dialogue_summarization import report
from dialogue_summarization.evaluation import statistics

from .tables import MEASURES, REFERENCE

TITLES = {
    "full": "full, three seeds",
    "average": "mean of their weights",
    "mbr": "and trained on, with summaries of minimum Bayes risk",
    "reference": "and trained on, with summaries nearest to the reference",
    "halves": "trained from scratch, with summaries by models that had not seen the dialogue",
    "ranking": "full, trained on with a ranking loss",
    "beams": "full, a fourth seed, 16 beams in place of 4",
    "oracle": "*no system*: of 32 samples the nearest to the references",
}


def table() -> pd.DataFrame:
    """A row per recipe: test scores, how far they are above the mean of the three seeds, and the length in words."""
    scores, rows = pd.read_csv(REFERENCE / "smollm2-dialogsum" / "distillation.csv"), {}
    by_seed = {recipe: dict(list(some.groupby("seed"))) for recipe, some in scores.groupby("recipe")}
    for recipe, title in TITLES.items():
        row = {}
        for measure in MEASURES:
            own, teachers = ([one[measure] for one in by_seed[name].values()] for name in (recipe, "full"))
            gap = statistics.compare(own, teachers)
            change = report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
            row[report.HEADINGS[measure]] = f"{np.mean(own):.3f}" + (f", {change}" if recipe != "full" else "")
        words = np.mean([one["words"].mean() for one in by_seed[recipe].values()])
        rows[title] = row | {"words": f"{words:.1f}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
