"""The command `study`: run an experiment's notebooks, score a file, summarize a dialogue.

Heavy packages are imported where they are used, so that `study --help` answers at once.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from . import processes
from .experiments import EXPERIMENTS, METHODS, STUDY_RUNS, ConfigurationError, Experiment, experiment, method

DESCRIPTION = """\
Fine-tune a small language model to summarize dialogues, and compare zero-shot, full fine-tuning and LoRA.

  study                                     the quickstart: notebooks 01 to 04, minutes on a CPU, no network
  study smollm2-dialogsum --dataset PATH    the study, on DialogSum in a folder
  study flan-t5-base-dialogsum              the study as first conceived, from the Hugging Face Hub
  study score predictions.csv --dataset PATH --split test
  study compare RUN RUN                     are they different, and how sure is that?
  study models                              base models, their weights and memory, and what fits this machine
  study summarize RUN FILE                  a summary from a trained model; - reads the dialogue from standard input
  study demo                                a web page on this machine to try the trained runs side by side
  study doctor                              what this machine has, and which experiments it can run
  study export RUN DIR                      a trained model or adapter with its card, for others to load
"""
NOTEBOOKS = ("01_zero_shot", "02_full_fine_tuning", "03_lora", "04_evaluation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where all went well, 1 for an error that the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "quickstart")
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    try:
        return options.run(options)
    except KeyboardInterrupt:
        if processes.ERROR_FILE not in os.environ:
            print("\nInterrupted. The same command goes on where it stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if processes.ERROR_FILE in os.environ:  # one of several processes: their launcher tells
            processes.report(str(error) if _is_for_the_user(error) else traceback.format_exc())
            return 1
        if not _is_for_the_user(error):
            raise
        print(f"study: {error}", file=sys.stderr)
        return 1


def _is_for_the_user(error: Exception) -> bool:
    """Our own errors say what to do; of any other the traceback is worth more."""
    return type(error).__module__.startswith("dialogue_summarization")


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        "study", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="experiments and commands", metavar="")
    for name, entry in EXPERIMENTS.items():
        command = commands.add_parser(name, help=entry.title, description=f"Run the study on {entry.title}.")
        command.add_argument("--runs", default=",".join(STUDY_RUNS), metavar="RUN,RUN",
                             help=f"which runs, of: {', '.join(METHODS)} (default: %(default)s)")  # fmt: skip
        command.add_argument("--model", metavar="SOURCE", help="another model: a name that `study models` "
                             "lists, a Hub id, or a folder with its files")  # fmt: skip
        command.add_argument("--dataset", metavar="SOURCE", help="other data: a Hub id, or a folder with train, "
                             "validation and test as .csv or .jsonl")  # fmt: skip
        command.add_argument("--limit", type=int, metavar="N", help="only the first N dialogues of each split")
        command.add_argument("--seed", type=int, default=0, help="seed of adapters, order and dropout (default: 0)")
        command.add_argument("--outputs", type=Path, metavar="DIR", help="where runs are written (default: outputs)")
        command.add_argument("--force", action="store_true", help="run again what is done already")
        command.add_argument("--gpus", type=int, default=1, metavar="N", help="train on N GPUs of this machine "
                             "(default: 1); without any, in N processes on the CPU")  # fmt: skip
        command.set_defaults(run=_study, experiment=name)
    score = commands.add_parser(
        "score",
        help="score a file of summaries",
        description="ROUGE with 95 %% intervals and more of a run, or of a CSV of summaries: a row a dialogue with id "
        "and prediction, or a row a reference in the split's order.",
    )
    score.add_argument("predictions", type=Path, help="the CSV file; or a run, as quickstart/full")
    score.add_argument("--dataset", metavar="SOURCE", help="a Hub id or a folder (default: the run's own)")
    score.add_argument("--split", default="test", choices=("train", "validation", "test"))
    score.add_argument("--column", default="prediction", help="the column with the summaries (default: prediction)")
    score.add_argument("--allow-missing", action="store_true", help="score missing and empty summaries as empty")
    score.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    score.set_defaults(run=_score)
    compare = commands.add_parser(
        "compare",
        help="test runs against each other",
        description="Differences of runs, or files of summaries, on the same dialogues, with intervals and tests.",
    )
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                         help="runs, as quickstart/full (all its seeds) or a folder; or CSV files")  # fmt: skip
    compare.add_argument("--dataset", metavar="SOURCE", help="a Hub id or a folder (default: the runs' own)")
    compare.add_argument("--split", default="test", choices=("train", "validation", "test"))
    compare.add_argument("--column", default="prediction", help="the column with the summaries (default: prediction)")
    compare.add_argument("--measure", default="rougeL", choices=("rouge1", "rouge2", "rougeL", "rougeLsum"))
    compare.add_argument("--allow-missing", action="store_true", help="score missing and empty summaries as empty")
    compare.set_defaults(run=_compare)
    models = commands.add_parser("models", help="list base models and what fits this machine")
    models.set_defaults(run=_models)
    summarize = commands.add_parser("summarize", help="summarize a dialogue with a trained model")
    summarize.add_argument("record", metavar="RUN", type=Path,
                           help="a run's folder, as outputs/quickstart/full/seed-0, or quickstart/full")  # fmt: skip
    summarize.add_argument("file", metavar="FILE", help="a text file with a dialogue, or - for standard input")
    summarize.set_defaults(run=_summarize)
    export = commands.add_parser(
        "export",
        help="write a trained model or adapter, with a card, for others to load",
        description="Write a run's model or adapter with tokenizer and model card, and check in a fresh process that "
        "it loads with transformers and peft alone.",
    )
    export.add_argument("record", metavar="RUN", type=Path, help="a run, as quickstart/full, or its folder")
    export.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    export.add_argument("--merge", action="store_true", help="a whole model, with the adapter in its weights")
    export.set_defaults(run=_export)
    demo = commands.add_parser(
        "demo",
        help="a web page on this machine to try the trained runs",
        description="A web page on this machine: a dialogue, and what each run of an experiment makes of it. Needs the "
        "extra demo: uv sync --extra demo.",
    )
    demo.add_argument("experiment", nargs="?", default="quickstart", metavar="EXPERIMENT",
                      help="an experiment, by the name of its folder in outputs (default: quickstart)")  # fmt: skip
    demo.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen on; with 0.0.0.0 "
                      "everyone in the network can use the page (default: 127.0.0.1, this machine alone)")  # fmt: skip
    demo.add_argument("--outputs", type=Path, metavar="DIR", help="where runs are (default: outputs)")
    demo.set_defaults(run=_demo)
    doctor = commands.add_parser("doctor", help="what this machine has, and which experiments it can run")
    doctor.add_argument("--outputs", type=Path, metavar="DIR", help="where runs are written (default: outputs)")
    doctor.set_defaults(run=_doctor)
    return parser


def _study(options: argparse.Namespace) -> int:
    names = [name.strip() for name in options.runs.split(",") if name.strip()]
    for name in names:
        method(name)
    chosen = experiment(options.experiment, model=options.model, dataset=options.dataset, limit=options.limit)
    if processes.count() > 1:
        return _share_of_study(options, chosen, names)

    from . import data, execution, locks, report, runs, study

    notebooks = data.ROOT / "notebooks"
    if not notebooks.exists():
        raise ConfigurationError(f"There is no folder {notebooks}: run `study` in a clone of the project.")
    splits = data.load(chosen)  # bad data is said now, not by a notebook
    outputs = (options.outputs or runs.OUTPUTS).resolve()
    folder = outputs / chosen.name
    for name in names:  # and so is another process
        locks.check(folder / name / f"seed-{options.seed}.partial")
    if options.gpus != 1:
        _launch(options, chosen, names)
    asked = {  # each with what the notebooks say by themselves
        "EXPERIMENT": (options.experiment, "quickstart"),
        "RUNS": (",".join(names), ",".join(STUDY_RUNS)),
        "MODEL": (_absolute(options.model), None),
        "DATASET": (_absolute(options.dataset), None),
        "LIMIT": (options.limit, None),
        "SEED": (options.seed, 0),
        "FORCE": (options.force, False),
        "OUTPUTS": (str(outputs), str(runs.OUTPUTS)),
    }
    parameters = {name: value for name, (value, default) in asked.items() if value != default}
    print(f"{chosen.name}: {', '.join(names)}")
    for name in names:
        if name not in STUDY_RUNS:  # no notebook teaches it; the last one compares it
            study.run(chosen, method(name), options.seed, outputs=outputs, force=options.force)
    taught = [name for name in names if name in STUDY_RUNS]
    for name in _needed(taught):
        told = parameters if name == NOTEBOOKS[3] or taught == names else parameters | {"RUNS": ",".join(taught)}
        execution.execute(notebooks / f"{name}.ipynb", folder / "notebooks", told)
    made = [run for run in runs.collect(chosen.name, outputs) if run.name in names and run.config.seed == options.seed]
    print(f"\n{report.results(made, splits['test']).to_string()}\n\n{report.signature(splits['test'])}")
    print(f"Model: {chosen.model}. Device: {made[0].environment['device']}.")
    print(f"\nExecuted notebooks, each with an HTML copy: {execution.relative(folder / 'notebooks')}")
    print(f"Records of the runs:                        {execution.relative(folder)}")
    return 0


def _launch(options: argparse.Namespace, chosen: Experiment, names: Sequence[str]) -> None:
    """Make the runs by several processes, each of which executes this same command line; notebooks then load them."""
    from . import models

    if options.gpus < 1:
        raise ConfigurationError(f"--gpus takes 1 or more, not {options.gpus}.")
    for name in names:
        if settings := chosen.settings_for(method(name)):
            processes.share(settings.batch_size, options.gpus)
    models.resolve(chosen.model)  # fetched, or converted, once
    processes.launch(options.gpus, ["-m", "dialogue_summarization", *options.arguments])
    options.force = False


def _share_of_study(options: argparse.Namespace, chosen: Experiment, names: Sequence[str]) -> int:
    """What each of several processes does that torchrun started: the runs, and no notebooks."""
    processes.join()

    from . import runs, study

    for name in names:
        study.run(chosen, method(name), options.seed, outputs=options.outputs or runs.OUTPUTS, force=options.force)
    processes.leave()
    return 0


def _needed(names: Sequence[str]) -> list[str]:
    """The notebooks that make these runs, and the one that compares them."""
    kinds = {"zero-shot": NOTEBOOKS[0], "full": NOTEBOOKS[1]}
    needed = {kinds.get(name, NOTEBOOKS[2]) for name in names} | {NOTEBOOKS[3]}
    return [name for name in NOTEBOOKS if name in needed]


def _absolute(source: str | None) -> str | None:
    """A folder's full path, since notebooks run elsewhere; a Hub id as it is."""
    return str(Path(source).expanduser().resolve()) if source and Path(source).expanduser().is_dir() else source


def _score(options: argparse.Namespace) -> int:
    from . import scoring

    [found], split = scoring.find([options.predictions], options)
    if options.json:
        print(json.dumps(scoring.figures(found, split)))
        return 0
    print(f"{scoring.table(found, split).to_string()}\n\n{scoring.signatures(found, split)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from . import comparison, report, scoring

    if len(options.runs) < 2:
        raise ConfigurationError("Name two runs or more to compare.")
    found, split = scoring.find(options.runs, options)
    systems = [one.system for one in found]
    print(f"{comparison.scores(systems).to_string()}\n")
    print("\n".join(comparison.sentences(systems, options.measure)))
    print(f"\n{comparison.resolution(systems, options.measure)}\n{report.signature(split)}")
    return 0


def _models(options: argparse.Namespace) -> int:
    from . import base_models, hardware

    free = hardware.free_memory()
    print(f"{base_models.table(free)}\n")
    print(f"Free here: {free / hardware.GIB:.1f} GiB ({hardware.describe()['device']}).")
    print("Memory is that of weights in fp32, gradients and optimizer; activations come on top.")
    return 0


def _summarize(options: argparse.Namespace) -> int:
    from . import data, hardware, runs, study
    from .generation import summarize

    run = runs.find(options.record, reference=False)[0]
    if options.file == "-":
        text = data.decode(sys.stdin.buffer.read(), "standard input")
    else:
        text = data.read_text(Path(options.file))
    if not text.strip():
        raise data.DataError("The dialogue is empty.")
    with hardware.quiet():
        print(summarize(study.model_of(run), [text.strip()], run.experiment.generation, progress=False)[0])
    return 0


def _export(options: argparse.Namespace) -> int:
    from . import hardware, runs
    from .export import export

    run = runs.find(options.record, reference=False)[0]
    with hardware.quiet():
        folder = export(run, options.folder.expanduser(), merge=options.merge)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}.")
    print("It loads with transformers and peft alone, and writes what the run's own model writes.")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from . import demo, runs

    demo.serve(runs.collect(options.experiment, options.outputs or runs.OUTPUTS), options.experiment, options.host)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from . import doctor, runs

    text, reasons = doctor.report((options.outputs or runs.OUTPUTS).resolve())
    print(text)
    for reason in reasons:
        print(f"study: the quickstart cannot run: {reason}", file=sys.stderr)
    return 1 if reasons else 0
