"""Commands on finished runs: score and compare them, as files of summaries, or use their models."""

import glob
import math
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from .. import data, disk, files, generation, hardware, report, runs, study
from ..errors import ConfigurationError, DataError
from ..evaluation import likelihood, mbr, systems
from ..experiments import Generation
from ..models import ModelBundle
from ..texts import unified
from ..tokenization import Family

_COPY = "Copy the run's folder to where it can be, and name the copy."


def find_runs(place: Path) -> list[runs.Run]:
    """The runs in a folder, or of a name below outputs or the committed records, as quickstart/full: one per seed.

    The digits behind the name of own data or an own model may be left out where there is only one such experiment.
    """
    pattern = f"{glob.escape(str(place.parent))}-{'[0-9a-f]' * 6}/{glob.escape(place.name)}"
    derived = [*runs.OUTPUTS.glob(pattern)] if not place.is_absolute() else []
    if len(derived) > 1:
        names = ", ".join(sorted(folder.parent.name for folder in derived))
        raise ConfigurationError(f"Which one is {place}? There are: {names}.")
    for folder in (place, runs.OUTPUTS / place, runs.OUTPUTS / "reference" / place, *derived):
        seeds = (path for path in sorted(folder.glob("seed-*")) if not path.suffix)  # unfinished ones have one
        if found := [path for path in (folder, *seeds) if (path / "config.json").exists()]:
            return [runs.read(path) for path in found]
    raise ConfigurationError(f"There is no run {place}. `study` makes the runs of quickstart.")


def score(options: Namespace) -> None:
    """Print the scores of one run or file with their intervals."""
    from ..evaluation import comparison  # with matplotlib, which the commands on models do without

    [system], rows, missing = _systems_of([options.predictions], options)
    if options.json:
        print(disk.to_json(system.columns() | {"dialogues": len(rows), "missing": missing}))
        return
    print(comparison.leaderboard([system]).to_string())
    print(f"\n{len(rows)} dialogues. {report.signature(rows)}")
    if missing:
        print(f"{missing} summaries are missing or empty and were scored as empty.")


def compare(options: Namespace) -> None:
    """Print scores, and differences with intervals and tests, of runs or files."""
    from ..evaluation import comparison

    if len(options.runs) < 2:
        raise ConfigurationError("Name two runs or more to compare.")
    loaded, rows, missing = _systems_of(options.runs, options)
    print(comparison.leaderboard(loaded).to_string())
    print(f"\n{comparison.pairwise(loaded, options.measure).to_string()}\n\n{report.signature(rows)}")
    if missing:
        print(f"{missing} summaries are missing or empty and were scored as empty.")


def _systems_of(places: Sequence[Path], options: Namespace) -> tuple[list[systems.System], Dataset, int]:
    """The systems in files or runs, the dialogues, and how many of these have no summary in a file."""
    if odd := [place for place in places if place.is_file() and place.suffix.lower() not in files.SUFFIXES]:
        raise DataError(f"{odd[0]}: summaries are read from files that end in {', '.join(files.SUFFIXES)}.")
    if options.split != "test" and any(place.suffix.lower() not in files.SUFFIXES for place in places):
        raise ConfigurationError(f"A run has summaries of the test dialogues, none of {options.split}.")
    records = {place: find_runs(place) for place in places if place.suffix.lower() not in files.SUFFIXES}
    made = {run.config.data_fingerprint: run for several in records.values() for run in several}  # one of each data
    if not made and not options.dataset:
        raise ConfigurationError("Name the dialogues that the file summarizes: --dataset SOURCE.")
    own = [runs.load_data(run, options.dataset or run.config.dataset) for run in made.values()]
    if len({data.fingerprint({"test": splits["test"]}) for splits in own}) > 1:
        raise DataError("These runs are of different test dialogues, and cannot be compared.")
    rows, missing = (own[0] if own else data.load_source(options.dataset))[options.split], 0
    found: list[tuple[Path, systems.System]] = []
    for place in places:
        if place in records:
            found += [(place, one) for one in systems.of_runs(records[place], rows)]
        else:
            may_lack = options.allow_missing
            system, texts = systems.of_file(place.stem, place, options.column, rows, allow_missing=may_lack)
            found.append((place, system))
            missing += texts.count("")
    counts = Counter(one.name for _, one in found)
    named = [replace(one, name=f"{place}: {one.name}") if counts[one.name] > 1 else one for place, one in found]
    return named, rows, missing


def find_trained(place: Path) -> list[runs.Run]:
    """Of the runs that `find_runs` gives, those with weights; all of them if none has any."""
    records = find_runs(place)
    return [run for run in records if run.weights] or records


def announce(run: runs.Run) -> None:
    """Say on standard error which model is used, what it was trained on, and its licence where its folder has one."""
    size = run.config.dialogues["train"] if run.config.settings else 0
    trained = f"trained on {size:,} dialogues of {run.config.dataset}" if size else "not trained"
    licence = run.folder / "LICENSE"
    terms = f", {licence.read_text('utf-8').splitlines()[0]}" if licence.exists() else ""
    print(f"{run.config.experiment}/{run.name}, seed {run.config.seed}: {trained}{terms}", file=sys.stderr)


def summarize(options: Namespace) -> None:
    """Print a run's summary of the dialogue in a text file, or of standard input for `-`."""
    run = find_trained(options.run)[0]
    announce(run)
    is_file = options.file != "-"
    text = files.read_text(Path(options.file)) if is_file else files.decode(sys.stdin.buffer.read(), "standard input")
    text = data.checked(text, options.file if is_file else "standard input")
    with hardware.quiet():
        bundle, settings = study.load_run(run), run.experiment.generation
        summary, parts = summarize_long(bundle, text, settings, options.long)
    if parts > 1:
        print(f"Longer than the model takes: summarized in {parts} parts, then their summaries.", file=sys.stderr)
    else:
        say_what_is_cut(bundle.family, [text])
    print(summary)


def summarize_long(bundle: ModelBundle, dialogue: str, settings: Generation, how: str) -> tuple[str, int]:
    """A summary, and of how many parts of the dialogue it is: 1 where it fits, or `how` is "cut".

    With "split" the parts' summaries are summarized. No scored run does it: that is not what was trained.
    """
    dialogue = unified(dialogue)
    parts = first = split(bundle.family, dialogue) if how == "split" else [dialogue]
    while len(parts) > 1:
        text = "\n".join(generation.summarize(bundle, parts, settings, progress=False))
        is_shorter = len(text) < sum(map(len, parts))  # or it would never fit
        parts = split(bundle.family, text) if is_shorter else [text]
    return generation.summarize(bundle, parts, settings, progress=False)[0], len(first)


def split(family: Family, text: str) -> list[str]:
    """The text in parts that fit, halved between turns; a single turn between words, a single word anywhere."""
    if not family.encode(text)["truncated"]:
        return [text]
    glue = next((glue for glue in ("\n", " ") if glue in text), "")
    units = text.split(glue) if glue else list(text)
    middle = len(units) // 2
    halves = (glue.join(units[:middle]), glue.join(units[middle:]))
    return [part for half in halves if half.strip() for part in split(family, half)]


def say_what_is_cut(family: Family, dialogues: Sequence[str]) -> None:
    """Say on standard error how many dialogues are longer than the model reads."""
    lengths, limit = list(map(family.prompt_length, dialogues)), family.max_prompt_tokens
    if count := sum(length > limit for length in lengths):
        which = f"{count} of {len(lengths)} dialogues are" if len(lengths) > 1 else "The dialogue is"
        tokens = f"{max(lengths):,} tokens with the prompt, of {limit:,}"
        print(f"{which} longer than the model takes: {tokens}. The end was left out.", file=sys.stderr)


def decode(options: Namespace) -> None:
    """Decode runs for minimum Bayes risk: on test into `mbr-N.csv` and `mbr-N.json`, on validation scores alone.

    Settings that are not the default stand in the names, so that no record replaces another.
    """
    temperature, epsilon, stem = options.temperature, options.epsilon, f"mbr-{options.samples}"
    if options.samples < 2 or not 0 < temperature < math.inf or not 0 <= epsilon < 1:
        raise ConfigurationError("--samples is 2 or more, --temperature above 0, --epsilon from 0 to below 1.")
    sampling = {"temperature": temperature, "epsilon_cutoff": epsilon}
    stem += "-validation" if options.split == "validation" else ""
    if options.split == "validation" or not sampling.items() <= mbr.SAMPLING.items():
        stem += f"-{temperature:g}-{epsilon:g}"
    stem += f"-seed{options.seed}" if options.seed else ""
    for run in find_trained(options.run):
        disk.require_writable(run.folder, _COPY)
        rows = mbr.dialogues_of(run, options.dataset or run.config.dataset, options.split)
        with hardware.quiet():
            bundle = study.load_run(run)
            say_what_is_cut(bundle.family, rows["dialogue"])
            texts, record = mbr.decode(run, bundle, rows, options.split, options.samples, sampling, options.seed)
        if options.split == "test":
            runs.write_predictions(run.folder / f"{stem}.csv", rows["id"], texts)
        disk.write_json(run.folder / f"{stem}.json", record)
        scores = (f"{name} {record[name]:.4f} (own {record['own'][name]:.4f})" for name in mbr.MEAN_OF)
        print(f"{run.folder / stem}.json: {', '.join(scores)}")


def measure_likelihoods(options: Namespace) -> None:
    """Test which summaries a run's model finds likelier, write `likelihood.csv` into its folder, print the table."""
    records = find_trained(options.run)
    for run in records:
        disk.require_writable(run.folder, _COPY)
        test = mbr.dialogues_of(run, options.dataset or run.config.dataset, "test")
        with hardware.quiet():
            bundle = study.load_run(run)
            say_what_is_cut(bundle.family, test["dialogue"])
            disk.write_csv(run.folder / "likelihood.csv", likelihood.run_test(bundle, test))
    print(likelihood.table(records).to_string())
