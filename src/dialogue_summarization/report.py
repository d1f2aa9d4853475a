"""Tables from runs: what the notebooks show and the command line prints."""

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from .data import read_rows
from .rouge import TYPES, score_all
from .runs import Run
from .significance import interval

HEADINGS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}


class PredictionsError(ValueError):
    """Predictions that do not belong to the dialogues they are scored against."""


def texts_of(run: Run, test: datasets.Dataset) -> list[str]:
    """A run's summaries, in the order of the test dialogues.

    Raises:
        PredictionsError: The record's summaries are not those of these dialogues.
    """
    written = dict(zip(run.predictions["id"], run.predictions["prediction"], strict=True))
    if list(written) != list(test["id"]):
        raise PredictionsError(
            f"{run.folder}: its {len(written)} summaries are not of these {len(test)} test dialogues. "
            f"Was the run made with another data set or limit?"
        )
    return list(written.values())


def dialogue_scores(run: Run, test: datasets.Dataset) -> pd.DataFrame:
    """ROUGE of each test dialogue (a row each, indexed by id) of a run's summaries. Raises `PredictionsError`."""
    return score_all(texts_of(run, test), test["summaries"]).set_index(pd.Index(test["id"], name="id"))


def match(
    path: Path, column: str, split: datasets.Dataset, *, allow_missing: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Summaries in a CSV file, with the references of each.

    Either a row a dialogue, found by its `id`; or a row a reference in the split's order, each then scored against its
    own, as files of DialogSum's 1,500 test rows are.

    Args:
        path: The file.
        column: The column with the summaries.
        split: The dialogues.
        allow_missing: Dialogues without a row, and empty summaries, count as empty summaries, which score 0.

    Raises:
        PredictionsError: Ids are missing, unknown or repeated, a summary is empty, or there is neither id nor a row a
            reference. The message counts and names them.
    """
    rows = read_rows(path)
    if not rows or column not in rows[0]:
        there = ", ".join(rows[0]) if rows else "no rows"
        raise PredictionsError(f"{path}: there is no column {column!r} (there are: {there}). Name it with --column.")
    texts = [str(row[column] or "").strip() for row in rows]
    references = [[reference] for several in split["summaries"] for reference in several]
    if "id" not in rows[0]:
        if len(rows) != len(references):
            raise PredictionsError(
                f"{path}: no column 'id', and {len(rows)} rows where the split has {len(references)} references."
            )
        if not allow_missing and (empty := [number for number, text in enumerate(texts, 1) if not text]):
            raise PredictionsError(f"{path}: {_count(empty, 'row')} without a summary in column {column!r}. {_ALLOW}")
        return texts, references
    ids = [str(row["id"]) for row in rows]
    problems = {
        "repeated": sorted(name for name, count in Counter(ids).items() if count > 1),
        "unknown": sorted(set(ids) - set(split["id"])),
    }
    if not allow_missing:
        problems["missing"] = [name for name in split["id"] if name not in set(ids)]
        problems["empty"] = [name for name, text in zip(ids, texts, strict=True) if not text]
    if any(problems.values()):
        said = "; ".join(f"{kind}: {_count(names, 'id')}" for kind, names in problems.items() if names)
        advice = _ALLOW if not (problems["repeated"] or problems["unknown"]) else ""
        raise PredictionsError(f"{path} does not have one summary for each dialogue. {said}. {advice}".rstrip())
    written = dict(zip(ids, texts, strict=True))
    return [written.get(name, "") for name in split["id"]], list(split["summaries"])


_ALLOW = "With --allow-missing they count as empty summaries, which score 0."


def _count(names: Sequence[object], what: str) -> str:
    shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({shown})"


def with_interval(value: float, bounds: tuple[float, float], spec: str = ".3f") -> str:
    """A value with the bounds of its interval: `0.421 [0.412, 0.430]`."""
    return f"{value:{spec}} [{bounds[0]:{spec}}, {bounds[1]:{spec}}]"


def flat(name: str, value: float, bounds: tuple[float, float]) -> dict[str, float]:
    """The same as numbers for files: `rouge1`, `rouge1_low`, `rouge1_high`."""
    return {name: round(value, 6), f"{name}_low": round(bounds[0], 6), f"{name}_high": round(bounds[1], 6)}


def results(runs: Sequence[Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row a method: ROUGE as mean and 95 % interval over dialogues, the share of weights trained, and the seconds.

    Runs that differ in nothing but their seed are one row of means, over whose seeds the intervals are too; a column
    then has their number with the lowest and the highest ROUGE-L.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(label(run, seed=False), []).append(run)
    rows = []
    for several in groups.values():
        tables = [dialogue_scores(run, test) for run in several]
        row: dict[str, object] = {"run": label(several[0], seed=len(several) == 1)}
        for name in TYPES:
            scores = np.stack([table[name] for table in tables])
            row[HEADINGS[name]] = with_interval(scores.mean(), interval(scores))
        if len(groups) < len(runs):
            row["seeds"] = seeds([table["rougeL"].mean() for table in tables])
        share = several[0].metrics["trainable_parameters"] / several[0].metrics["parameters"]
        row["trained"] = f"{share:.2%}" if share else "none"
        row["training s"] = _mean(several, "train_seconds")
        row["summaries s"] = _mean(several, "generate_seconds")
        rows.append(row)
    return pd.DataFrame(rows).set_index("run")


def seeds(scores: Sequence[float]) -> str:
    """How many seeds, and from what score to what: `3: 0.363 to 0.368`."""
    return str(len(scores)) if len(scores) == 1 else f"{len(scores)}: {min(scores):.3f} to {max(scores):.3f}"


def sources(runs: Sequence[Run], names: Sequence[str]) -> pd.DataFrame:
    """A row a run: where its record comes from; for a run that is missing, which notebook makes it."""
    makers = {"zero-shot": "notebook 01 makes it", "full": "notebook 02 makes it"}
    reference = any(run.is_reference for run in runs)
    rows = {
        label(run): f"made here on {run.date}"
        if not run.is_reference
        else f"reference of {run.date}, committed; {makers.get(run.name, 'notebook 03 makes it')} anew"
        for run in runs
    }
    if not reference:
        there = {run.name for run in runs}
        rows |= {name: f"missing: {makers.get(name, 'notebook 03 makes it')}" for name in names if name not in there}
    return pd.DataFrame({"record": rows}).rename_axis("run")


def to_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, its index as the first column."""
    flat = table.reset_index()
    lines = [list(flat.columns), ["---"] * len(flat.columns), *flat.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_output() -> None:
    """Set a notebook up to show whole texts in tables, and neither redrawn bars nor notes of the libraries."""
    import transformers  # not above: scoring takes no torch

    pd.set_option("display.max_colwidth", None)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def label(run: Run, *, seed: bool = True) -> str:
    """The run's name, its seed where it is not 0, and whether it is one of the committed reference records."""
    seed = f", seed {run.config.seed}" if seed and run.config.seed else ""
    return f"{run.name}{seed}{' (reference)' if run.is_reference else ''}"


def signature(test: datasets.Dataset) -> str:
    """How scores were computed, in one line, as sacrebleu's signatures do (Post 2018)."""
    counts = sorted({len(references) for references in test["summaries"]})
    return (
        f"rouge_score:{importlib.metadata.version('rouge-score')}|stem:yes|refs:mean{'-'.join(map(str, counts))}"
        f"|lsum:sentences|n:{len(test)}|bs:10000|seed:0"
    )


def _mean(runs: Sequence[Run], name: str) -> str:
    values = [run.metrics[name] for run in runs if name in run.metrics]
    return f"{sum(values) / len(values):.0f}" if values else "–"
