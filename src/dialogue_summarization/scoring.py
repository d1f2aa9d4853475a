"""What `study score` and `study compare` print: the evaluation notebook's figures, for runs or files of summaries."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd

from . import data, runs, text_metrics
from .experiments import ConfigurationError
from .report import HEADINGS, flat, label, signature, texts_of, with_interval
from .rouge import TYPES
from .systems import System, of_file, of_runs


@dataclass(frozen=True)
class Found:
    """A system, and its summaries where there is one a dialogue; `missing` of them were not there."""

    system: System
    texts: list[str] | None
    missing: int = 0


def find(places: Sequence[Path], options: argparse.Namespace) -> tuple[list[Found], datasets.Dataset]:
    """The systems that a command line names, and the dialogues they are scored on.

    Args:
        places: CSV files or runs.
        options: With `dataset`, `split`, `column` and `allow_missing`.

    Raises:
        ConfigurationError: There is no such run, or no data set is named for files.
        PredictionsError: Summaries are not of the dialogues.
    """
    made = {place: runs.find(place) for place in places if place.suffix.lower() != ".csv"}
    first = next((several[0] for several in made.values()), None)
    source = options.dataset or (first.config.dataset if first else None)
    if source is None:
        raise ConfigurationError("Name the dialogues that the file summarizes: --dataset SOURCE.")
    split = data.load_source(source)[options.split]
    if first and options.split == "test":
        split = split.select(range(min(first.config.dialogues["test"], len(split))))
    systems = []
    for place in places:
        if place in made:
            systems.append(Found(of_runs(made[place], split)[0], texts_of(made[place][0], split)))
            continue
        one, texts = of_file(place.stem, place, options.column, split, allow_missing=options.allow_missing)
        systems.append(Found(one, texts, sum(not text for text in texts or ())))
    return systems, split


def table(found: Found, split: datasets.Dataset) -> pd.DataFrame:
    """A row a measure: the value with its interval, and the best reference for ROUGE."""
    one = found.system
    rows = {
        HEADINGS[name]: {
            "value": with_interval(one.score(name), one.interval(name), ".4f"),
            "best reference": "–" if one.best is None else f"{one.best[:, :, place].mean():.4f}",
        }
        for place, name in enumerate(TYPES)
    }
    if found.texts:
        for name, (value, bounds) in _others(found, split).items():
            rows[name] = {"value": with_interval(value, bounds), "best reference": ""}
    return pd.DataFrame(rows).T.rename_axis(label(one.runs[0]) if one.runs else one.name)


def figures(found: Found, split: datasets.Dataset) -> dict[str, float | int]:
    """The same as flat numbers: `rouge1`, `rouge1_low`, `rouge1_high`, `rouge1_best`, ..., `dialogues`, `missing`."""
    one, row = found.system, {}
    for place, name in enumerate(TYPES):
        row |= one.flat(name)
        if one.best is not None:
            row[f"{name}_best"] = round(float(one.best[:, :, place].mean()), 6)
    if found.texts:
        for name, entry in _others(found, split).items():
            row |= flat(name, *entry)
    return row | {"dialogues": len(split), "missing": found.missing}


def _others(found: Found, split: datasets.Dataset) -> dict[str, tuple[float, tuple[float, float]]]:
    return text_metrics.describe(found.texts, list(split["dialogue"]), list(split["summaries"]))


def signatures(found: Found, split: datasets.Dataset) -> str:
    """How all of it was computed, and what was missing."""
    lines = [f"{len(split)} dialogues. {signature(split)}"]
    if found.texts:
        lines.append(text_metrics.signature(found.texts, list(split["summaries"])))
    if found.missing:
        lines.append(f"{found.missing} of them have no summary here and were scored as empty.")
    return "\n".join(lines)
