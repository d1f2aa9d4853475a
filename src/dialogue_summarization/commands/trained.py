"""Commands on the model of a finished run: summarize a dialogue, decode for minimum Bayes risk, test likelihoods."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from .. import disk, files, hardware, runs, study
from ..errors import ConfigurationError, DataError
from ..evaluation import likelihood, mbr
from ..tokenization import Family
from .long import summarize_long

_COPY = "Copy the run's folder to where it can be, and name the copy."


def find_runs(place: Path) -> list[runs.Run]:
    """The runs in a folder, or of a name below outputs or the committed records, as quickstart/full: one per seed.

    The digits behind the name of own data or an own model may be left out where there is only one such experiment.
    """
    derived = [*runs.OUTPUTS.glob(f"{place.parent}-{'[0-9a-f]' * 6}/{place.name}")] if not place.is_absolute() else []
    if len(derived) > 1:
        names = ", ".join(sorted(folder.parent.name for folder in derived))
        raise ConfigurationError(f"Which one is {place}? There are: {names}.")
    for folder in (place, runs.OUTPUTS / place, runs.OUTPUTS / "reference" / place, *derived):
        seeds = (path for path in sorted(folder.glob("seed-*")) if not path.suffix)  # unfinished ones have one
        if found := [path for path in (folder, *seeds) if (path / "config.json").exists()]:
            return [runs.read(path) for path in found]
    raise ConfigurationError(f"There is no run {place}. `study` makes the runs of quickstart.")


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
    if not text.strip():
        raise DataError("The dialogue is empty.")
    with hardware.quiet():
        bundle, settings = study.load_run(run), run.experiment.generation
        summary, parts = summarize_long(bundle, text.strip(), settings, options.long)
    if parts > 1:
        print(f"Longer than the model takes: summarized in {parts} parts, then their summaries.", file=sys.stderr)
    else:
        say_what_is_cut(bundle.family, [text.strip()])
    print(summary)


def say_what_is_cut(family: Family, dialogues: Sequence[str]) -> None:
    """Say on standard error how many dialogues are longer than the model reads."""
    lengths, limit = list(map(family.prompt_length, dialogues)), family.max_prompt_tokens
    if count := sum(length > limit for length in lengths):
        which = f"{count} of {len(lengths)} dialogues are" if len(lengths) > 1 else "The dialogue is"
        tokens = f"{max(lengths):,} tokens with the prompt, of {limit:,}"
        print(f"{which} longer than the model takes: {tokens}. The end was left out.", file=sys.stderr)


def decode(options: Namespace) -> None:
    """Decode runs for minimum Bayes risk: on test into `mbr-N.csv` and `mbr-N.json`, on validation scores alone."""
    temperature, epsilon, stem = options.temperature, options.epsilon, f"mbr-{options.samples}"
    if options.samples < 2 or temperature <= 0 or not 0 <= epsilon < 1:
        raise ConfigurationError("--samples is 2 or more, --temperature above 0, --epsilon from 0 to below 1.")
    if options.split == "validation":
        stem += f"-validation-{temperature:g}-{epsilon:g}"
    sampling = {"temperature": temperature, "epsilon_cutoff": epsilon}
    for run in find_trained(options.run):
        disk.require_writable(run.folder, _COPY)
        rows = mbr.dialogues_of(run, options.dataset or run.config.dataset, options.split)
        with hardware.quiet():
            texts, record = mbr.decode(run, rows, options.split, options.samples, sampling, options.seed)
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
