"""`study score` and `study compare`: the figures of notebook 04, for runs or files of summaries."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import datasets

from .. import data, disk, report, runs
from ..errors import ConfigurationError, DataError
from ..evaluation import comparison, systems
from ..files import SUFFIXES
from .trained import find_runs


def score(options: Namespace) -> None:
    """Print the scores of one run or file with their intervals."""
    [system], rows, missing = _load([options.predictions], options)
    if options.json:
        print(disk.to_json(system.columns() | {"dialogues": len(rows), "missing": missing}))
        return
    print(comparison.leaderboard([system]).to_string())
    print(f"\n{len(rows)} dialogues. {report.signature(rows)}")
    if missing:
        print(f"{missing} of them have no summary here and were scored as empty.")


def compare(options: Namespace) -> None:
    """Print scores, and differences with intervals and tests, of runs or files."""
    if len(options.runs) < 2:
        raise ConfigurationError("Name two runs or more to compare.")
    loaded, rows, _ = _load(options.runs, options)
    print(comparison.leaderboard(loaded).to_string())
    print(f"\n{comparison.pairwise(loaded, options.measure).to_string()}\n\n{report.signature(rows)}")


def _load(places: Sequence[Path], options: Namespace) -> tuple[list[systems.System], datasets.Dataset, int]:
    """The systems in files or runs, the dialogues, and how many of these have no summary in a file."""
    if odd := [place for place in places if place.is_file() and place.suffix.lower() not in SUFFIXES]:
        raise DataError(f"{odd[0]}: summaries are read from files that end in {', '.join(SUFFIXES)}.")
    records = {place: find_runs(place) for place in places if place.suffix.lower() not in SUFFIXES}
    made = {run.config.data_fingerprint: run for several in records.values() for run in several}  # one of each data
    if not made and not options.dataset:
        raise ConfigurationError("Name the dialogues that the file summarizes: --dataset SOURCE.")
    own = [runs.load_data(run, options.dataset or run.config.dataset) for run in made.values()]
    if len({data.fingerprint({"test": splits["test"]}) for splits in own}) > 1:
        raise DataError("These runs are of different test dialogues, and cannot be compared.")
    rows, loaded, missing = (own[0] if own else data.load_source(options.dataset))[options.split], [], 0
    for place in places:
        if place in records:
            loaded += systems.of_runs(records[place], rows)
        else:
            system, texts = systems.of_file(
                place.stem, place, options.column, rows, allow_missing=options.allow_missing
            )
            loaded.append(system)
            missing += (texts or []).count("")
    return loaded, rows, missing
