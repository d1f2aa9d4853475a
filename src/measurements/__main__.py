"""Measure on this machine, or make anew what the records say: `python -m measurements NAME ...`.

On several GPUs the same behind `torchrun --standalone --nproc-per-node N -m`; a batch is that of all of them together.
Instead of names: `sweep SPACE ... --outputs DIR`, `documents`, `sample-data`, `committed-adapter`,
`withhold FOLDER DATASET TARGET`, and `forgetting DIR RUN ...` with folders of runs.
"""

import argparse
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache

from dialogue_summarization import data, disk, errors, experiments, hardware, runs
from dialogue_summarization.distributed import processes

from . import (
    adapter,
    card_limits,
    conventions,
    cost_curves,
    documents,
    forgetting,
    peers,
    sample_data,
    short_training,
    tables,
    throughput,
    withhold,
)
from .sweep import run as sweep
from .sweep.trials import SPACES


def main(arguments: Sequence[str]) -> int:
    """Run the command line. Exits with 1 after an error that the user can mend, with 130 after an interruption."""
    parser = argparse.ArgumentParser("python -m measurements", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"of: {', '.join(MEASURES)}, {', '.join(SPACES)}")
    parser.add_argument("--dataset", default=experiments.DIALOGSUM, help="a Hub id or a folder")
    parser.add_argument("--outputs", type=Path, default=tables.FOLDER, metavar="DIR", help="where records go")
    parser.add_argument("--batch-size", type=int, metavar="N", help="another batch, of all GPUs together")
    part = {"type": int, "nargs": 2, "default": (1, 1), "metavar": ("I", "N")}
    parser.add_argument("--share", **part, help="every N-th method, from the I-th on")
    parser.add_argument("--published", type=Path, metavar="DIR", help="published predictions, for `conventions`")
    parser.add_argument("--plain", action="store_true", help="compile no steps of a sweep")
    options = parser.parse_args(arguments)
    command, *rest = options.names
    try:
        if command in COMMANDS:
            COMMANDS[command](*rest)
        elif command == "sample-data":
            sample_data.write(data.ROOT / "data", options.dataset)
        elif command == "sweep":
            return sweep.main(rest, options.dataset, options.outputs, options.share, not options.plain)
        else:
            for name in options.names:
                if name not in MEASURES:
                    parser.error(f"There is no measurement {name!r}. There are: {', '.join(MEASURES)}.")
            measure(options)
    except errors.UserError as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "Interrupted. What is recorded so far is kept.\n")
    return 0


def measure(options: argparse.Namespace) -> None:
    """Write a record of each measurement that is named: where it fails, as far as it came, with `failed`."""
    processes.join()
    splits, gpus = data.load_source(options.dataset), PartialState().num_processes
    options.outputs.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        record = {"name": name}
        try:
            MEASURES[name](record, splits, options)
        except Exception as error:  # of any kind: the others are measured all the same
            traceback.print_exc()
            record["failed"] = short_training.first_line(error)
        clear_device_cache(garbage_collection=True)
        record |= runs.environment()
        if gpus > 1:
            record |= {"name": f"{record['name']}-gpus{gpus}", "device": f"{gpus} x {record['device']}"}
        if PartialState().is_main_process:
            print(disk.to_json({key: value for key, value in record.items() if key != "losses"}), flush=True)
            disk.write_json(options.outputs / f"{record['name']}.json", record)
    processes.leave()


def measure_command(record: dict[str, object], splits: object, options: argparse.Namespace) -> None:
    """Seconds of the command `study`, with its notebooks: of the quickstart, or of the whole study."""
    whole = ["smollm2-dialogsum", "--dataset", options.dataset]
    line = [sys.executable, "-m", "dialogue_summarization", *(whole if record["name"] == "study" else ["quickstart"])]
    with tempfile.TemporaryDirectory() as outputs, hardware.Meter() as meter:
        subprocess.run([*line, "--outputs", outputs], check=True)
    record["seconds"] = round(meter.seconds, 1)


COMMANDS = {
    "documents": documents.write,
    "withhold": withhold.withhold_folder,
    "forgetting": forgetting.write,
    "committed-adapter": adapter.write,
}
MEASURES = {
    **dict.fromkeys(throughput.CONFIGURATIONS, throughput.measure),
    **dict.fromkeys(("generate-beams1", "generate-beams4"), throughput.measure_generation),
    **dict.fromkeys(card_limits.NAMES, card_limits.measure),
    **dict.fromkeys(("study", "quickstart-cpu"), measure_command),
    **dict.fromkeys(("cpu-full", "cpu-lora-balanced"), peers.measure_on_cpu),
    "adapter-cpu": adapter.measure_on_cpu,
    "conventions": conventions.measure,
    "growth": cost_curves.measure_growth,
    "weights": throughput.measure_weights,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
