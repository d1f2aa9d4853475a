"""Summaries in a file, by whatever wrote them: checked against the dialogues, and scored as a system.

`published_scores.csv` holds systems of others on DialogSum: where their predictions come from, and what they scored.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pandas as pd

from ..data import read_rows
from ..errors import DataError
from ..rouge import score_pairs
from .systems import System, from_pairs

DIALOGSUM_TEST = "1d9b7820906c345b"  # hash of the test split that the published systems summarized


def of_file(
    name: str, path: Path, column: str, test: datasets.Dataset, *, allow_missing: bool = False
) -> tuple[System, list[str] | None]:
    """A system from a file of summaries, and its summaries, one per dialogue; None where there are several of one.

    Where the file has a row per reference, each row counts against its own reference, and dialogues stay the units.
    Summaries of one dialogue may then differ; the best reference would be the best of several tries, and is left out.
    Raises what `load_predictions` raises.
    """
    texts, references = load_predictions(path, column, test, allow_missing=allow_missing)
    table = score_pairs(texts, references)
    if len(texts) == len(test):
        return from_pairs(name, "file", [table]), texts
    keys = [(row, at) for row, several in enumerate(test["summaries"]) for at in range(len(several))]
    table.index = pd.MultiIndex.from_tuples(keys, names=table.index.names)
    system, grouped = from_pairs(name, "file", [table]), pd.Series(texts, table.index).groupby(level="dialogue")
    if grouped.nunique().max() > 1:
        return replace(system, best=None, best_of_others=None), None
    return system, grouped.first().tolist()


def load_predictions(
    path: Path, column: str, split: datasets.Dataset, *, allow_missing: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Summaries in a file, with the references of each.

    Either a row per dialogue, found by its `id`; or a row per reference in the split's order, each then scored against
    its own, as files of DialogSum's 1,500 test rows are. With `allow_missing` dialogues without a row, and empty
    summaries, count as empty summaries, which score 0.

    Raises:
        DataError: Ids are missing, unknown or repeated, a summary is empty, or there is neither id nor a row per
            reference. The message counts and names them.
    """
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    if column not in columns:
        there = ", ".join(columns) or "no rows"
        raise DataError(f"{path}: there is no column {column!r} (there are: {there}). Name it with --column.")
    texts = pd.Series([str(row[column] or "").strip() for row in rows], dtype=object)
    if "id" in columns:
        texts.index = [str(row["id"]) for row in rows]
        expected, references = list(split["id"]), list(split["summaries"])
    else:
        references = [[reference] for several in split["summaries"] for reference in several]
        if len(texts) != len(references):
            there = f"{len(texts)} rows where the split has {len(references)} references"
            raise DataError(f"{path}: no column 'id', and {there}.")
        texts.index = expected = [f"row {number}" for number in range(1, len(texts) + 1)]
    problems = {"repeated": texts.index[texts.index.duplicated()], "unknown": texts.index.difference(expected)}
    if not allow_missing:
        problems["missing"] = pd.Index(expected).difference(texts.index, sort=False)
        problems["empty"] = texts.index[texts == ""]
    said = "; ".join(f"{kind}: {_count(list(ids))}" for kind, ids in problems.items() if len(ids))
    if said:
        advice = "With --allow-missing those missing or empty count as empty summaries, which score 0."
        raise DataError(f"{path} does not have one summary for each dialogue. {said}. {advice}")
    return texts.reindex(expected, fill_value="").tolist(), references


def _count(ids: list[str]) -> str:
    shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return f"{len(ids)} {'id' if len(ids) == 1 else 'ids'} ({shown})"


def published_scores(test: datasets.Dataset) -> pd.DataFrame:
    """The committed table of published systems, a row each; empty where these are not the dialogues they summarized."""
    content = json.dumps([list(test["id"]), list(test["dialogue"]), list(test["summaries"])])
    table = pd.read_csv(Path(__file__).with_name("published_scores.csv"), encoding="utf-8").set_index("system")
    return table if hashlib.sha256(content.encode()).hexdigest()[:16] == DIALOGSUM_TEST else table[:0]


def published(test: datasets.Dataset, folder: str | Path) -> list[System]:
    """The published systems whose predictions are in a folder, scored on the test split. Raises `DataError`."""
    systems = []
    for row in published_scores(test).itertuples():
        path = Path(folder) / row.file
        if path.exists():
            system, _ = of_file(row.Index, path, row.column, test)
            systems.append(replace(system, kind="published"))
    return systems
