"""\
Fine-tune a small language model to summarize dialogues, and compare zero-shot, full fine-tuning and LoRA.

  study                                     the quickstart: notebooks 01 to 04, minutes on a CPU, no network
  study smollm2-dialogsum --dataset PATH    the study, on DialogSum in a folder
  study flan-t5-base-dialogsum              the same with FLAN-T5-base, from the Hugging Face Hub
  study score predictions.csv --dataset PATH --split test
  study compare quickstart/full quickstart/lora-balanced
  study summarize quickstart/full dialogue.txt
"""

import errno
import importlib.util
import io
import os
import sys
from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import __version__
from ..errors import UserError
from ..experiments import EXPERIMENTS, METHODS
from ..methods.table import FURTHER_METHODS
from ..settings import TRACKERS

SET = "another setting, as epochs=2, or of one run, as lora-balanced.r=32; see docs/settings.md (repeatable)"
REPORT_TO = f"trackers, of: {', '.join(TRACKERS)} (default: tensorboard, files on this machine)"
LONG = "dialogues longer than the model takes: cut at the end (default), or split and summarized in parts"
_UNUSABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EISDIR)
_USE = "Free some space or name another folder; what was finished is kept, and the same command resumes."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 after an error that the user can mend, or 130 after an interruption.

    Returns 141 where whoever reads the output, as `head`, has read enough.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where a console lacks a character
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "quickstart")
    try:
        try:
            _run(_parser().parse_args(arguments))
        finally:
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written
        return 141
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes where it stopped.", file=sys.stderr)
        return 130
    except UserError as error:
        said = str(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        from .execution import memory_advice

        said = f"Memory is short. {memory_advice()}"
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        said = f"{error.filename or 'A file'} cannot be used: {error.strerror}. {_USE}"
    print(f"study: {said}", file=sys.stderr)
    return 1


def _run(options: Namespace) -> None:
    if getattr(options, "report_to", None):
        options.report_to = _trackers(options.report_to)
    for name in ("device", "yes", "report_to"):  # notebooks' kernels, and processes that are started, get them too
        if getattr(options, name, None):
            os.environ[f"STUDY_{name.upper()}"] = str(getattr(options, name))
    match options.command:  # only what is asked for is imported: most of it takes seconds
        case "score":
            from .trained import score as function
        case "compare":
            from .trained import compare as function
        case "summarize":
            from .trained import summarize as function
        case "mbr":
            from .trained import decode as function
        case "likelihood":
            from .trained import measure_likelihoods as function
        case "models":
            from .models import print_models as function
        case "tune":
            from .tune import tune as function
        case "export":
            from .export import export_command as function
        case "demo":
            from .demo import serve as function
        case "doctor":
            from .doctor import report as function
        case "class":
            from .execution import copy_for_class as function
        case _:
            from .notebooks import run_experiment as function
    function(options)


def _parser() -> ArgumentParser:
    parser = ArgumentParser("study", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="experiments and commands", metavar="", dest="command")

    def add(name: str, text: str, *parents: ArgumentParser) -> Callable[..., Action]:
        return commands.add_parser(name, help=text, description=text, parents=parents).add_argument

    # What several commands take.
    a_run, data, outputs, scoring, machine, long, making = (ArgumentParser(add_help=False) for _ in range(7))
    a_run.add_argument("run", type=Path, metavar="RUN", help="a run, as quickstart/full, or its folder")
    data.add_argument("--dataset", metavar="SOURCE", help="a Hub id or a folder (default: the run's own)")
    outputs.add_argument("--outputs", type=Path, metavar="DIR", help="where runs are (default: outputs)")
    scoring.add_argument("--split", default="test", choices=("train", "validation", "test"))
    scoring.add_argument("--column", default="prediction", help="the column with the summaries (default: prediction)")
    machine.add_argument("--device", choices=("cpu",), help="leave a GPU alone (default: it is used)")
    long.add_argument("--long", default="cut", choices=("cut", "split"), help=LONG)
    making.add_argument("--model", metavar="SOURCE", help="another: a name of `study models`, a Hub id, or a folder")
    making.add_argument("--dataset", metavar="SOURCE", help="other data: a Hub id, or a folder (see data/README.md)")
    making.add_argument("--limit", type=int, metavar="N", help="only the first N dialogues of each split")
    making.add_argument("--set", action="append", metavar="NAME=VALUE", help=SET)
    making.add_argument("--seed", type=int, default=0, help="seed of adapters, order and dropout (default: 0)")
    making.add_argument("--report-to", metavar="NAME,NAME", help=REPORT_TO)
    making.add_argument("--yes", action="store_true", help="start what takes hours on a CPU")
    scoring.add_argument("--allow-missing", action="store_true", help="score missing and empty summaries as empty")

    runs = f"which runs, of: {', '.join([*METHODS, *FURTHER_METHODS])} (default: %(default)s)"
    for experiment in EXPERIMENTS.values():
        option = add(experiment.name, experiment.title, making, machine, outputs)
        option("--runs", default=",".join(experiment.runs), metavar="RUN,RUN", help=runs)
        option("--force", action="store_true", help="run again what is done already")
        option("--gpus", type=int, default=1, metavar="N", help="train on N GPUs, or in N processes on a CPU")

    option = add("score", "ROUGE with intervals, and more, of a run or a file of summaries", data, scoring)
    rows = "a row per dialogue (id, prediction), or per row of the data, with its id or in its order"
    option("predictions", type=Path, help=f"a run; or a .csv, .tsv or .jsonl file with {rows}")
    option("--json", action="store_true", help="one JSON object instead of a table")
    option = add("compare", "test runs, or files of summaries, against each other on the same dialogues", data, scoring)
    option("runs", nargs="+", type=Path, metavar="RUN", help="as quickstart/full (all its seeds), a folder, or a file")
    option("--measure", default="rougeL", choices=("rouge1", "rouge2", "rougeL", "rougeLsum"))
    add("models", "list base models and what fits this machine")
    option = add("tune", "choose a run's learning rate on validation", making, machine, outputs)
    option("experiment", metavar="EXPERIMENT", help=f"of: {', '.join(EXPERIMENTS)}")
    option("run", metavar="RUN", help="a run that is trained, as lora-balanced")
    option("--learning-rate", required=True, metavar="RATE,RATE", help="the rates to try, as 5e-4,1e-3,2e-3")
    option = add("summarize", "summarize a dialogue with a trained model", a_run, machine, long)
    option("file", metavar="FILE", help="a text file with a dialogue, or - for standard input")
    option = add("mbr", "choose among sampled summaries for minimum Bayes risk, and keep the record", a_run, data)
    option("--split", default="test", choices=("validation", "test"), help="settings are chosen on validation")
    option("--samples", type=int, default=16, metavar="N", help="per dialogue (default: 16)")
    option("--temperature", type=float, default=1.0, help="default: 1")
    option("--epsilon", type=float, default=0.02, help="least probability of a token that is drawn (default: 0.02)")
    option("--seed", type=int, default=0, help="of the draws (default: 0)")
    add("likelihood", "test how often a run's model finds a reference likelier than a wrong summary", a_run, data)
    option = add("export", "write a trained model or adapter, with a model card, and check that it loads", a_run)
    option("folder", type=Path, metavar="DIR", help="a new folder")
    option("--merge", action="store_true", help="a whole model, with the adapter in its weights")
    option("--gguf", choices=("f16", "q8_0"), help="one file for llama.cpp and Ollama, and a Modelfile")
    text = "a web page on this machine to try the trained runs (extra: uv sync --extra demo)"
    option = add("demo", text, outputs, machine, long)
    option("experiment", nargs="?", default="quickstart", metavar="EXPERIMENT", help="its name (default: quickstart)")
    option("--host", default="127.0.0.1", help="0.0.0.0 lets the whole network use the page (default: 127.0.0.1)")
    add("doctor", "what this machine has, and which experiments it can run", outputs)
    option = add("class", "copy the notebooks for a class, without outputs and answers")
    option("folder", type=Path, metavar="FOLDER", help="where the copies go: in the clone, beside notebooks/")
    return parser


def _trackers(names: str) -> str:
    """The names without blanks. Raises `UserError` where one is not known, or its package is missing."""
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in TRACKERS:
            raise UserError(f"--report-to {name}: allowed are {', '.join(TRACKERS)}.")
        if name != "none" and importlib.util.find_spec(name) is None:
            raise UserError(f"--report-to {name}: the package is missing. `uv pip install {name}` installs it.")
    return ",".join(chosen)
