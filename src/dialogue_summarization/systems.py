"""What is compared: our runs, baselines that need no model, the humans who wrote the references, published systems.

All are scored in one way on the same test dialogues, and stay apart by their kind.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from .report import flat, label, match, texts_of
from .rouge import TYPES, humans, leave_one_out_best, pairs
from .runs import Run
from .significance import interval

KINDS = ("human", "published", "run", "file", "baseline")


@dataclass(frozen=True, eq=False)
class System:
    """Scores of whoever wrote summaries of the test dialogues; each is equal to itself alone.

    The arrays are (seeds, dialogues, types), the types in the order of `rouge.TYPES`.
    """

    name: str
    kind: str  # one of KINDS
    mean: np.ndarray  # over a dialogue's references: the headline
    best: np.ndarray | None  # of all references; None for humans, who have one less
    best_of_others: np.ndarray | None  # of all references but one, as a human has; None where there is one reference
    by_reference: pd.DataFrame  # a row a reference's number, a column a type
    runs: tuple[Run, ...] = ()

    def scores(self, measure: str) -> np.ndarray:
        """One measure, (seeds, dialogues)."""
        return self.mean[:, :, TYPES.index(measure)]

    def score(self, measure: str) -> float:
        """The mean over dialogues, and over seeds."""
        return float(self.scores(measure).mean())

    def interval(self, measure: str) -> tuple[float, float]:
        """Of `score`, at 95 %."""
        return interval(self.scores(measure))

    def flat(self, measure: str) -> dict[str, float]:
        """Both, as `report.flat` names them."""
        return flat(measure, self.score(measure), self.interval(measure))


def system(name: str, kind: str, tables: Sequence[pd.DataFrame], runs: Sequence[Run] = ()) -> System:
    """A system from its scores against each reference, a table of `rouge.pairs` a seed."""
    grouped = [table.groupby(level="dialogue") for table in tables]
    others = [leave_one_out_best(table) for table in tables]
    complete = all(len(table) == len(group) for table, group in zip(others, grouped, strict=True))
    return System(
        name,
        kind,
        np.stack([group.mean().to_numpy() for group in grouped]),
        np.stack([group.max().to_numpy() for group in grouped]),
        np.stack([table.to_numpy() for table in others]) if complete else None,
        pd.concat(tables).groupby(level="reference").mean(),
        tuple(runs),
    )


def of_runs(runs: Sequence[Run], test: datasets.Dataset) -> list[System]:
    """A system a method: runs that differ in nothing but their seed are one method.

    Raises:
        PredictionsError: A record's summaries are not those of these dialogues.
    """
    references = list(test["summaries"])
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(label(run, seed=False), []).append(run)
    return [
        system(name, "run", [pairs(texts_of(run, test), references) for run in several], several)
        for name, several in groups.items()
    ]


def of_file(
    name: str, path: Path, column: str, test: datasets.Dataset, *, kind: str = "file", allow_missing: bool = False
) -> tuple[System, list[str] | None]:
    """A system from a file of summaries, and its summaries, one a dialogue; None where there are several a dialogue.

    Where the file has a row a reference, each row counts against its own reference, and dialogues stay the units. Such
    summaries of one dialogue may differ; the best reference would then be the best of several tries, and is left out.
    Raises what `report.match` raises.
    """
    texts, references = match(path, column, test, allow_missing=allow_missing)
    table = pairs(texts, references)
    if len(texts) == len(test):
        return system(name, kind, [table]), texts
    keys = [(row, at) for row, several in enumerate(test["summaries"]) for at in range(len(several))]
    table.index = pd.MultiIndex.from_tuples(keys, names=table.index.names)
    grouped = pd.Series(texts, table.index).groupby(level="dialogue")
    found = system(name, kind, [table])
    if grouped.nunique().max() > 1:
        return replace(found, best=None, best_of_others=None), None
    return found, grouped.first().tolist()


def lead(dialogue: str, turns: int) -> str:
    """The dialogue's first turns."""
    return " ".join(dialogue.splitlines()[:turns])


def longest(dialogue: str) -> str:
    """The dialogue's longest turn, the first of them where there are several."""
    return max(dialogue.splitlines(), key=len)


def random_turns(dialogue: str, turns: int = 2, seed: int = 0) -> str:
    """Turns drawn without replacement, in their order; the same for the same dialogue and seed."""
    lines = dialogue.splitlines()
    drawn = random.Random(f"{seed} {dialogue}").sample(range(len(lines)), min(turns, len(lines)))
    return " ".join(lines[place] for place in sorted(drawn))


BASELINES: dict[str, Callable[[str], str]] = {
    "lead-1": lambda dialogue: lead(dialogue, 1),
    "lead-2": lambda dialogue: lead(dialogue, 2),
    "lead-3": lambda dialogue: lead(dialogue, 3),
    "longest turn": longest,
    "2 random turns": random_turns,
}


def baselines(test: datasets.Dataset) -> list[System]:
    """What copying turns scores: a model that does no better has learnt nothing about summaries."""
    references = list(test["summaries"])
    return [
        system(name, "baseline", [pairs([write(dialogue) for dialogue in test["dialogue"]], references)])
        for name, write in BASELINES.items()
    ]


def human_line(test: datasets.Dataset) -> System | None:
    """Each human against the others of the same dialogue, then the mean over humans; None for single references."""
    if min(map(len, test["summaries"])) < 2:
        return None
    tables = humans(list(test["summaries"]))
    each, best = ([table.groupby(level="dialogue").agg(how) for table in tables] for how in ("mean", "max"))
    mean, best = (pd.concat(several).groupby(level="dialogue").mean().to_numpy()[None] for several in (each, best))
    numbers = range(1, len(tables) + 1)
    own = pd.DataFrame([table.mean() for table in tables], index=pd.Index(numbers, name="reference"))
    return System("humans, each against the others", "human", mean, None, best, own)


def best_baseline(systems: Sequence[System], measure: str) -> System:
    """The baseline with the highest score."""
    return max((one for one in systems if one.kind == "baseline"), key=lambda one: one.score(measure))
