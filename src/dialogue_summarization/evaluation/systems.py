"""What is compared: our runs, baselines without a model, the humans who wrote the references, summaries in files.

All are scored in one way on the same test dialogues, and stay apart by their kind. `published_scores.csv` holds systems
of others on DialogSum: where their predictions come from, and what these scored here.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data import fingerprint
from ..errors import DataError
from ..files import read_rows, refuse_written_list
from ..intervals import interval
from ..report import display_name, predictions, with_interval
from ..rouge import TYPES, score_dialogues, score_pairs, scorer_for
from ..runs import Run
from ..texts import unified

KINDS = ("reference", "published", "run", "adapter", "file", "baseline")
CANDIDATES = 128  # train summaries that are tried as the one sentence for all dialogues
DIALOGSUM_TEST = "df38498d72fab702"  # fingerprint of the test split that the published systems summarized


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
    texts: tuple[tuple[str, ...], ...] = ()  # the summaries, per seed

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
    """The same as text, for tables; what JSON has as null is unknown."""
    value, *bounds = (np.nan if columns[key] is None else columns[key] for key in (name, f"{name}_low", f"{name}_high"))
    return with_interval(value, bounds, spec)


def from_texts(name: str, kind: str, texts: list[list[str]], test: Dataset, runs: Sequence[Run] = ()) -> System:
    """A system from its summaries of the test dialogues, a list per seed."""
    tables = [score_pairs(summaries, list(test["summaries"])) for summaries in texts]
    mean, best = (np.stack([table.groupby(level="dialogue").agg(how) for table in tables]) for how in ("mean", "max"))
    others = np.stack([leave_one_out_best(table) for table in tables])
    measured = texts if kind in ("run", "adapter", "baseline") else []
    references = tuple(map(tuple, test["summaries"]))
    form = [form_only(tuple(summaries), references) for summaries in measured]
    form_score = float(np.mean(form)) if form else np.nan
    return System(name, kind, mean, best, others, form_score, tuple(runs), tuple(map(tuple, texts)))


@lru_cache(maxsize=64)  # tables and files ask for the same ones
def form_only(summaries: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> float:
    """Mean ROUGE-1 F1 of summaries against the references of other dialogues, 20 others each of 48; NaN for one."""
    scores, count, rouge1 = [], len(references), scorer_for(references, ("rouge1",))
    for shift in range(1, min(count, 1 + max(1, 1000 // count))):
        for number, summary in enumerate(summaries):
            others = references[(number + shift) % count]
            scores.append(np.mean([rouge1.score(text, summary)["rouge1"].fmeasure for text in others]))
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
    for name, seeds in methods:
        if len({replace(run.config, seed=0).key for run in seeds}) > 1:
            raise DataError(f"{name}: seeds with other settings or another base model do not make one mean.")
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
    rouge1 = scorer_for([texts], ("rouge1",))
    return max(texts, key=lambda text: sum(rouge1.score(other, text)["rouge1"].fmeasure for other in texts))


def copied_turns(dialogue: str) -> dict[str, str]:
    """What each baseline copies of a dialogue; turns drawn at random are the same for the same dialogue."""
    turns = unified(dialogue).split("\n")
    drawn = random.Random(f"0 {dialogue}").sample(range(len(turns)), min(2, len(turns)))
    copies = {f"lead-{count}": turns[:count] for count in (1, 2, 3)}
    copies |= {"longest turn": [max(turns, key=len)], "2 random turns": [turns[place] for place in sorted(drawn)]}
    return {name: " ".join(lines) for name, lines in copies.items()}


def human_baseline(test: Dataset) -> list[System]:
    """Each human against the others of the same dialogue, then the mean over humans; none for single references."""
    references = list(test["summaries"])
    texts = pd.Series(references).explode()  # by the number of their dialogue
    others = [several[:place] + several[place + 1 :] for several in references for place in range(len(several))]
    if not all(others):
        return []
    each = score_pairs(texts.tolist(), others).groupby(level="dialogue")  # a human stands for a dialogue here
    mean, best = (scores.groupby(texts.index).mean().to_numpy()[None] for scores in (each.mean(), each.max()))
    return [System("references, each against the others", "reference", mean, np.full_like(mean, np.nan), best)]


def of_file(
    name: str, path: Path, column: str, test: Dataset, *, kind: str = "file", allow_missing: bool = False
) -> tuple[System, list[str]]:
    """A system from a file of summaries, and its summaries, one per dialogue, or per reference where they differ.

    In a file with a row per reference summaries of one dialogue may differ. Each then counts against its own reference;
    the best reference would be the best of several tries, and is left out. Raises what `load_predictions` raises.
    """
    texts = load_predictions(path, column, test, allow_missing=allow_missing)
    if len(texts) > len(test):
        references = pd.Series(list(test["summaries"])).explode()  # by the number of their dialogue
        summaries = pd.Series(texts).groupby(references.index)
        if summaries.nunique().max() > 1:
            scores = score_dialogues(texts, [[reference] for reference in references])
            f1 = scores.groupby(references.index).mean().to_numpy()[None]
            return System(name, kind, f1, texts=(tuple(texts),)), texts
        texts = summaries.first().tolist()
    return from_texts(name, kind, [texts], test), texts


def load_predictions(path: Path, column: str, split: Dataset, *, allow_missing: bool = False) -> list[str]:
    """Summaries in a file, as many as dialogues or as references, in the order of the split.

    A row has the `id` of a dialogue or that of a row of the data. Without ids there is a row per row of the data, or
    per reference, in the order of the data: references of one dialogue need not be neighbours there.

    Raises `DataError`, which counts and names ids that are missing, unknown or repeated and summaries that are empty.
    With `allow_missing` dialogues without a row, and empty summaries, count as empty summaries, which score 0.
    """
    rows = read_rows(path)
    rows = [{"id" if name.strip().lower() == "id" else name: value for name, value in row.items()} for row in rows]
    columns = list(rows[0]) if rows else []
    if column not in columns:
        there = ", ".join(columns) or "no rows"
        raise DataError(f"{path}: there is no column {column!r} (there are: {there}). Name it with --column.")
    ids, expected = _rows_and_places(path, rows, split)
    texts = [_summary(row.get(column), f"{path}, row {n}, column {column!r}") for n, row in enumerate(rows, 1)]
    texts = pd.Series(texts, ids, dtype=object)
    problems = {"repeated": texts.index[texts.index.duplicated()], "unknown": texts.index.difference(expected)}
    if not allow_missing:
        problems["missing"] = pd.Index(expected).difference(texts.index, sort=False)
        problems["empty"] = texts.index[texts == ""]
    said = "; ".join(f"{kind}: {_count(list(ids))}" for kind, ids in problems.items() if len(ids))
    if said:
        advice = "With --allow-missing those missing or empty count as empty summaries, which score 0."
        raise DataError(f"{path} does not have one summary for each dialogue. {said}. {advice}")
    return texts.reindex(expected, fill_value="").tolist()


def _rows_and_places(path: Path, rows: list[dict[str, object]], split: Dataset) -> tuple[list[str], list[str]]:
    """What each row of a file is called, and each dialogue or reference of the split."""
    dialogues, row_ids = list(split["id"]), list(itertools.chain(*split["row_ids"]))
    if "id" in rows[0]:
        ids = [unified(str(row.get("id"))).strip() for row in rows]
        return ids, row_ids if set(ids) & set(row_ids) - set(dialogues) else dialogues
    for name in rows[0]:
        if len({unified(str(row.get(name))).strip() for row in rows} & {*dialogues, *row_ids}) > len(rows) / 2:
            raise DataError(f"{path}: the column {name!r} holds the ids. Call it id.")
    numbers = pd.Series(list(itertools.chain(*split["row_numbers"])))
    for places in (numbers.rank(method="dense"), numbers.rank(method="first")):
        if len(rows) == places.max():
            return [f"row {number + 1}" for number in range(len(rows))], [f"row {place:.0f}" for place in places]
    expected = f"the split has {len(numbers)} references in {numbers.nunique()} rows"
    raise DataError(f"{path}: no column 'id', and {len(rows)} rows where {expected}.")


def _summary(value: object, where: str) -> str:
    if not isinstance(value, str | None):
        raise DataError(f"{where}: text expected, not {type(value).__name__}.")
    refuse_written_list(value or "", where)
    return unified(value or "").strip()


def _count(ids: list[str]) -> str:
    shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return f"{len(ids)} {'id' if len(ids) == 1 else 'ids'} ({shown})"


def published_scores(test: Dataset) -> pd.DataFrame:
    """The committed table of published systems, a row each; empty where these are not the dialogues they summarized."""
    table = pd.read_csv(Path(__file__).with_name("published_scores.csv"), encoding="utf-8").set_index("system")
    return table if fingerprint({"test": test}) == DIALOGSUM_TEST else table[:0]


def published(test: Dataset, folder: str | Path) -> list[System]:
    """The published systems whose predictions are in a folder, scored on the test split. Raises `DataError`."""
    rows = [(row, Path(folder) / row.file) for row in published_scores(test).itertuples()]
    return [of_file(row.Index, path, row.column, test, kind="published")[0] for row, path in rows if path.exists()]
