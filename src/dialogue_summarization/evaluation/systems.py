"""What is compared: our runs, baselines without a model, the humans who wrote the references, summaries in files.

All are scored in one way on the same test dialogues, and stay apart by their kind. `published_scores.csv` holds systems
of others on DialogSum: where their predictions come from, and what these scored here.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data import read_rows
from ..errors import DataError
from ..intervals import interval
from ..report import display_name, predictions, with_interval
from ..rouge import TYPES, score_dialogues, score_pairs, scorer
from ..runs import Run

KINDS = ("reference", "published", "run", "adapter", "file", "baseline")
CANDIDATES = 128  # train summaries that are tried as the one sentence for all dialogues
DIALOGSUM_TEST = "1d9b7820906c345b"  # hash of the test split that the published systems summarized


@dataclass(frozen=True, eq=False)
class System:
    """Scores of whoever wrote summaries of the test dialogues: F1 as (seeds, dialogues, types of `rouge.TYPES`)."""

    name: str
    kind: str  # one of KINDS
    f1: np.ndarray  # the mean over a dialogue's references: the headline
    best: np.ndarray | None = None  # of all references; NaN for humans, who have one less
    best_of_others: np.ndarray | None = None  # of all references but one, as a human has; NaN for single references
    form_only: float = np.nan  # ROUGE-1 against the references of other dialogues: what the form alone scores
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


def from_texts(name: str, kind: str, texts: list[list[str]], test: Dataset, runs: Sequence[Run] = ()) -> System:
    """A system from its summaries of the test dialogues, a list per seed."""
    tables = [score_pairs(summaries, list(test["summaries"])) for summaries in texts]
    mean, best = (np.stack([table.groupby(level="dialogue").agg(how) for table in tables]) for how in ("mean", "max"))
    others = np.stack([leave_one_out_best(table) for table in tables])
    measured = texts if kind in ("run", "adapter", "baseline") else []
    references = tuple(map(tuple, test["summaries"]))
    form = [form_only(tuple(summaries), references) for summaries in measured]
    return System(name, kind, mean, best, others, float(np.mean(form)) if form else np.nan, tuple(runs))


@lru_cache(maxsize=64)  # tables and files ask for the same ones
def form_only(summaries: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> float:
    """Mean ROUGE-1 F1 of summaries against the references of other dialogues, 20 others each of 48; NaN for one."""
    scores, count = [], len(references)
    for shift in range(1, min(count, 1 + max(1, 1000 // count))):
        for number, summary in enumerate(summaries):
            others = references[(number + shift) % count]
            scores.append(np.mean([scorer(("rouge1",)).score(text, summary)["rouge1"].fmeasure for text in others]))
    return float(np.mean(scores)) if scores else np.nan


def leave_one_out_best(scores: pd.DataFrame) -> pd.DataFrame:
    """A row per dialogue: the best reference among all but one, the mean over which one is left out.

    That puts a system on a level with a human, who is one of the k references and has k - 1. Without the best reference
    the second is best, without another the best is. `scores` are those of `score_pairs`; NaN for single references.
    """
    dialogues = scores.groupby(level="dialogue")
    best = dialogues.max()
    second = scores[dialogues.rank(method="first", ascending=False) > 1].groupby(level="dialogue").max()
    return best - (best - second).div(dialogues.size(), axis=0)


def of_runs(runs: Sequence[Run], test: Dataset) -> list[System]:
    """A system per method: runs that differ in nothing but their seed are one method. Raises `DataError`."""
    names = pd.Series([display_name(run, seed=False) for run in runs], dtype=object)
    methods = pd.Series(list(runs), dtype=object).groupby(names, sort=False)
    return [from_texts(name, "run", [predictions(run, test) for run in seeds], test, seeds) for name, seeds in methods]


def baselines(test: Dataset, train: Dataset | None = None) -> list[System]:
    """What copying turns scores, and one sentence for all dialogues: a model must do better to have learnt anything."""
    copies = pd.DataFrame(map(copied_turns, test["dialogue"]))
    if train is not None:
        copies["one sentence for all"] = best_sentence(train)
    return [from_texts(name, "baseline", [copies[name].tolist()], test) for name in copies]


def best_sentence(train: Dataset) -> str:
    """Of the first `CANDIDATES` train summaries the one that scores best, by ROUGE-1, against all of them."""
    texts = [summaries[0] for summaries in train["summaries"]][:CANDIDATES]
    rouge1 = scorer(("rouge1",))
    return max(texts, key=lambda text: sum(rouge1.score(other, text)["rouge1"].fmeasure for other in texts))


def copied_turns(dialogue: str) -> dict[str, str]:
    """What each baseline copies of a dialogue; turns drawn at random are the same for the same dialogue."""
    turns = dialogue.splitlines()
    drawn = random.Random(f"0 {dialogue}").sample(range(len(turns)), min(2, len(turns)))
    copies = {f"lead-{count}": turns[:count] for count in (1, 2, 3)}
    copies |= {"longest turn": [max(turns, key=len)], "2 random turns": [turns[place] for place in sorted(drawn)]}
    return {name: " ".join(lines) for name, lines in copies.items()}


def human_baseline(test: Dataset) -> list[System]:
    """Each human against the others of the same dialogue, then the mean over humans; none for single references."""
    humans = [
        (number, text, several[:place] + several[place + 1 :])
        for number, several in enumerate(test["summaries"])
        for place, text in enumerate(several)
    ]
    dialogues, texts, others = map(list, zip(*humans, strict=True))
    if not all(others):
        return []
    each = score_pairs(texts, others).groupby(level="dialogue")  # a human stands for a dialogue here
    mean, best = (scores.groupby(dialogues).mean().to_numpy()[None] for scores in (each.mean(), each.max()))
    return [System("references, each against the others", "reference", mean, np.full_like(mean, np.nan), best)]


def of_file(
    name: str, path: Path, column: str, test: Dataset, *, kind: str = "file", allow_missing: bool = False
) -> tuple[System, list[str] | None]:
    """A system from a file of summaries, and its summaries, one per dialogue; None where there are several of one.

    In a file with a row per reference summaries of one dialogue may differ. Each then counts against its own reference;
    the best reference would be the best of several tries, and is left out. Raises what `load_predictions` raises.
    """
    texts = load_predictions(path, column, test, allow_missing=allow_missing)
    if len(texts) > len(test):
        references = pd.Series(list(test["summaries"])).explode()  # by the number of their dialogue
        summaries = pd.Series(texts).groupby(references.index)
        if summaries.nunique().max() > 1:
            scores = score_dialogues(texts, [[reference] for reference in references])
            return System(name, kind, scores.groupby(references.index).mean().to_numpy()[None]), None
        texts = summaries.first().tolist()
    return from_texts(name, kind, [texts], test), texts


def load_predictions(path: Path, column: str, split: Dataset, *, allow_missing: bool = False) -> list[str]:
    """Summaries in a file: a row per dialogue, found by its `id`, or else a row per reference in the split's order.

    Raises `DataError`, which counts and names ids that are missing, unknown or repeated and summaries that are empty.
    With `allow_missing` dialogues without a row, and empty summaries, count as empty summaries, which score 0.
    """
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    if column not in columns:
        there = ", ".join(columns) or "no rows"
        raise DataError(f"{path}: there is no column {column!r} (there are: {there}). Name it with --column.")
    ids, expected = [str(row.get("id")) for row in rows], list(split["id"])
    if "id" not in columns:
        count = sum(map(len, split["summaries"]))
        if len(rows) != count:
            raise DataError(f"{path}: no column 'id', and {len(rows)} rows where the split has {count} references.")
        ids = expected = [f"row {number}" for number in range(1, count + 1)]
    texts = pd.Series([str(row[column] or "").strip() for row in rows], ids, dtype=object)
    problems = {"repeated": texts.index[texts.index.duplicated()], "unknown": texts.index.difference(expected)}
    if not allow_missing:
        problems["missing"] = pd.Index(expected).difference(texts.index, sort=False)
        problems["empty"] = texts.index[texts == ""]
    said = "; ".join(f"{kind}: {_count(list(ids))}" for kind, ids in problems.items() if len(ids))
    if said:
        advice = "With --allow-missing those missing or empty count as empty summaries, which score 0."
        raise DataError(f"{path} does not have one summary for each dialogue. {said}. {advice}")
    return texts.reindex(expected, fill_value="").tolist()


def _count(ids: list[str]) -> str:
    shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return f"{len(ids)} {'id' if len(ids) == 1 else 'ids'} ({shown})"


def published_scores(test: Dataset) -> pd.DataFrame:
    """The committed table of published systems, a row each; empty where these are not the dialogues they summarized."""
    content = json.dumps([list(test["id"]), list(test["dialogue"]), list(test["summaries"])])
    table = pd.read_csv(Path(__file__).with_name("published_scores.csv"), encoding="utf-8").set_index("system")
    return table if hashlib.sha256(content.encode()).hexdigest()[:16] == DIALOGSUM_TEST else table[:0]


def published(test: Dataset, folder: str | Path) -> list[System]:
    """The published systems whose predictions are in a folder, scored on the test split. Raises `DataError`."""
    rows = [(row, Path(folder) / row.file) for row in published_scores(test).itertuples()]
    return [of_file(row.Index, path, row.column, test, kind="published")[0] for row, path in rows if path.exists()]
