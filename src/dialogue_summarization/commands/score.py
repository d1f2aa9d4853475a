"""`study score` and `study compare`: the figures of notebook 04, for runs or files of summaries."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import datasets
import pandas as pd

from .. import data, report
from ..errors import ConfigurationError
from ..evaluation import comparison, text_metrics
from ..evaluation.systems import System, of_file, of_runs, to_columns
from ..rouge import TYPES
from .trained import find_runs


def score(options: Namespace) -> None:
    """Print each measure of one run or file with its interval. Raises what `_load` raises."""
    [(system, texts)], rows = _load([options.predictions], options)
    measures = {name: (system.score(name), system.interval(name)) for name in TYPES}
    if texts:
        measures |= text_metrics.describe(texts, rows)
    best = {} if system.best is None else dict(zip(TYPES, system.best.mean(axis=(0, 1)), strict=True))
    missing = sum(not text for text in texts or ()) if system.kind == "file" else 0
    if options.json:
        figures = {f"{name}_best": round(float(value), 6) for name, value in best.items()}
        for name, (value, bounds) in measures.items():
            figures |= to_columns(name, value, bounds)
        print(json.dumps(figures | {"dialogues": len(rows), "missing": missing}))
        return
    table = {}
    for name, (value, bounds) in measures.items():
        shown = report.with_interval(value, bounds, ".4f" if name in TYPES else ".3f")
        best_reference = f"{best[name]:.4f}" if name in best else ""
        table[report.HEADINGS.get(name, name)] = {"value": shown, "best reference": best_reference}
    print(pd.DataFrame(table).T.rename_axis(system.name).to_string())
    print(f"\n{len(rows)} dialogues. {report.signature(rows)}")
    if texts:
        print(text_metrics.signature(list(rows["summaries"])))
    if missing:
        print(f"{missing} of them have no summary here and were scored as empty.")


def compare(options: Namespace) -> None:
    """Print scores, and differences with intervals and tests, of runs or files. Raises what `_load` raises."""
    if len(options.runs) < 2:
        raise ConfigurationError("Name two runs or more to compare.")
    loaded, rows = _load(options.runs, options)
    systems = [system for system, _ in loaded]
    print(comparison.leaderboard(systems).to_string())
    print(f"\n{comparison.pairwise(systems, options.measure).to_string()}\n\n{report.signature(rows)}")


def _load(places: Sequence[Path], options: Namespace) -> tuple[list[tuple[System, list[str] | None]], datasets.Dataset]:
    """The systems in CSV files or runs, each with its summaries if there is one per dialogue; and the dialogues.

    Raises:
        ConfigurationError: There is no such run, or no data set is named for files.
        DataError: Summaries are not of the dialogues.
    """
    records = {place: find_runs(place) for place in places if place.suffix.lower() != ".csv"}
    config = next((several[0].config for several in records.values()), None)
    source = options.dataset or (config.dataset if config else None)
    if source is None:
        raise ConfigurationError("Name the dialogues that the file summarizes: --dataset SOURCE.")
    rows = data.load_source(source)[options.split]
    if config and options.split == "test":
        rows = rows.select(range(min(config.dialogues["test"], len(rows))))
    systems = []
    for place in places:
        if place in records:
            [system] = of_runs(records[place], rows)
            systems.append((system, report.predictions(records[place][0], rows)))
        else:
            systems.append(of_file(place.stem, place, options.column, rows, allow_missing=options.allow_missing))
    return systems, rows
