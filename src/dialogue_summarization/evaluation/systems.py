"""What is compared: our runs, baselines without a model, the humans who wrote the references, systems of others.

All are scored in one way on the same test dialogues, and stay apart by their kind. Systems of others are in `files`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import datasets
import numpy as np
import pandas as pd

from ..intervals import interval
from ..report import display_name, predictions, with_interval
from ..rouge import TYPES, score_pairs
from ..runs import Run

KINDS = ("human", "published", "run", "file", "baseline")


@dataclass(frozen=True, eq=False)
class System:
    """Scores of whoever wrote summaries of the test dialogues: F1 as (seeds, dialogues, types of `rouge.TYPES`)."""

    name: str
    kind: str  # one of KINDS
    f1: np.ndarray  # the mean over a dialogue's references: the headline
    best: np.ndarray | None = None  # of all references; None for humans, who have one less
    best_of_others: np.ndarray | None = None  # of all references but one, as a human has; None for single references
    runs: tuple[Run, ...] = ()

    def scores(self, measure: str) -> np.ndarray:
        """One measure, (seeds, dialogues)."""
        return self.f1[:, :, TYPES.index(measure)]

    def score(self, measure: str) -> float:
        return float(self.scores(measure).mean())

    def interval(self, measure: str) -> tuple[float, float]:
        return interval(self.scores(measure))

    def columns(self) -> dict[str, float]:
        """All scores and intervals as numbers for files, as `to_columns` names them."""
        columns = {}
        for name in TYPES:
            columns |= to_columns(name, self.score(name), self.interval(name))
        return columns


def to_columns(name: str, value: float, bounds: tuple[float, float]) -> dict[str, float]:
    """A value and its interval as numbers for files: `rouge1`, `rouge1_low`, `rouge1_high`."""
    return {name: round(value, 6), f"{name}_low": round(bounds[0], 6), f"{name}_high": round(bounds[1], 6)}


def from_columns(columns: Mapping[str, float], name: str, spec: str = ".3f") -> str:
    """The same as text, for tables."""
    return with_interval(columns[name], (columns[f"{name}_low"], columns[f"{name}_high"]), spec)


def from_pairs(name: str, kind: str, tables: Sequence[pd.DataFrame], runs: Sequence[Run] = ()) -> System:
    """A system from its scores against each reference, one table of `rouge.score_pairs` per seed."""
    grouped = [table.groupby(level="dialogue") for table in tables]
    mean, best = (np.stack([group.agg(how) for group in grouped]) for how in ("mean", "max"))
    best_of_others = np.stack([leave_one_out_best(table) for table in tables])
    return System(name, kind, mean, best, None if np.isnan(best_of_others).any() else best_of_others, tuple(runs))


def leave_one_out_best(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per dialogue: the best reference among all but one, the mean over which one is left out.

    So a system, which has k references, is put on a level with a human, who is one of the k and has k - 1. Without the
    best reference the second is best, without any other the best is. `scores` are those of `score_pairs`; NaN where a
    dialogue has one reference.
    """
    grouped = scores.groupby(level="dialogue")
    best = grouped.max()
    second = scores[grouped.rank(method="first", ascending=False) > 1].groupby(level="dialogue").max()
    return best - (best - second).div(grouped.size(), axis=0)


def of_runs(runs: Sequence[Run], test: datasets.Dataset) -> list[System]:
    """A system per method: runs that differ in nothing but their seed are one method. Raises `DataError`."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(display_name(run, seed=False), []).append(run)
    references = list(test["summaries"])
    return [
        from_pairs(name, "run", [score_pairs(predictions(run, test), references) for run in several], several)
        for name, several in methods.items()
    ]


def lead(dialogue: str, turns: int) -> str:
    """The dialogue's first turns."""
    return " ".join(dialogue.splitlines()[:turns])


def longest(dialogue: str) -> str:
    """The dialogue's longest turn, the first of them where there are several."""
    return max(dialogue.splitlines(), key=len)


def random_turns(dialogue: str) -> str:
    """Two turns drawn without replacement, in their order; the same for the same dialogue."""
    lines = dialogue.splitlines()
    drawn = random.Random(f"0 {dialogue}").sample(range(len(lines)), min(2, len(lines)))
    return " ".join(lines[place] for place in sorted(drawn))


BASELINES = {f"lead-{turns}": partial(lead, turns=turns) for turns in (1, 2, 3)}
BASELINES |= {"longest turn": longest, "2 random turns": random_turns}


def baselines(test: datasets.Dataset) -> list[System]:
    """What copying turns scores: a model that does no better has learnt nothing about summaries."""
    references = list(test["summaries"])
    return [
        from_pairs(name, "baseline", [score_pairs(list(map(copy, test["dialogue"])), references)])
        for name, copy in BASELINES.items()
    ]


def human_baseline(test: datasets.Dataset) -> System | None:
    """Each human against the others of the same dialogue, then the mean over humans; None for single references."""
    references = list(test["summaries"])
    if min(map(len, references)) < 2:
        return None
    humans = [(dialogue, place) for dialogue, several in enumerate(references) for place in range(len(several))]
    texts = [references[dialogue][place] for dialogue, place in humans]
    others = [references[dialogue][:place] + references[dialogue][place + 1 :] for dialogue, place in humans]
    each = score_pairs(texts, others).groupby(level="dialogue")  # a human stands for a dialogue here
    dialogues = [dialogue for dialogue, _ in humans]
    mean, best = (scores.groupby(dialogues).mean().to_numpy()[None] for scores in (each.mean(), each.max()))
    return System("humans, each against the others", "human", mean, None, best)
