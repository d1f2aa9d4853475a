"""How long a whole study takes: `python -m dialogue_summarization.benchmark study quickstart-cpu`."""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

from . import study
from .experiments import EXPERIMENTS, STUDY_RUNS, method

EPOCHS = 3
NAMES = ("study", "quickstart-cpu")


class StudyFailed(RuntimeError):
    """The command `study` did not come to its end; the message is what it said."""


def measure(name: str, dataset: str) -> dict[str, Any]:
    """Seconds of one of `NAMES`, loading and scoring included, in a folder that is removed afterwards.

    `study` is the five runs of smollm2-dialogsum on a data set, three epochs each. `quickstart-cpu` is the command
    `study` with its notebooks.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = _five_runs(dataset, folder) if name == "study" else _quickstart(folder)
        return {"name": name, "seconds": round(time.perf_counter() - start, 1)} | found


def _five_runs(dataset: str, outputs: str) -> dict[str, Any]:
    chosen = EXPERIMENTS["smollm2-dialogsum"]
    settings = {name: replace(one, epochs=EPOCHS) for name, one in chosen.settings.items()}
    chosen = replace(chosen, name="measured", dataset=dataset, settings=settings)
    seconds = {}
    for name in STUDY_RUNS:
        start = time.perf_counter()
        study.run(chosen, method(name), outputs=outputs)
        seconds[name] = round(time.perf_counter() - start, 1)
    return {"epochs": EPOCHS, "seconds_each": seconds}


def _quickstart(outputs: str) -> dict[str, Any]:
    line = [sys.executable, "-m", "dialogue_summarization", "quickstart", "--outputs", outputs]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise StudyFailed(done.stderr)
    return {}
