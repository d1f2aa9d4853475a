"""The record of a run on disk: write it, read it, list them.

What was asked (`config.json`), what was measured (`metrics.json`, `predictions.csv`, `training_log.csv`) and where
(`environment.json`) are apart from one another.
"""

import csv
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from . import damage, processes
from .data import ROOT, read_rows
from .experiments import METHODS, ConfigurationError, Experiment, Generation

OUTPUTS = ROOT / "outputs"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "rouge-score")
NAMES = ("experiment", "method", "model", "dataset")  # what a run is called changes nothing in its result


class RecordError(ValueError):
    """A record that cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run's result, and what things are called. `settings` is None where nothing is trained.

    `options` are a method's beside PEFT's; records from before there were any have none.
    """

    experiment: str
    method: str
    model: str
    dataset: str
    seed: int
    prompt: str
    max_prompt_tokens: int
    generation: Mapping[str, object]
    settings: Mapping[str, object] | None
    peft: Mapping[str, object] | None
    dialogues: Mapping[str, int]
    data_fingerprint: str
    model_fingerprint: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A hash over all that changes the result: two runs with the same key are the same run."""
        content = {name: value for name, value in asdict(self).items() if name not in NAMES}
        if not self.options:  # as before there were any
            del content["options"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """A finished run as its record has it."""

    folder: Path
    config: RunConfig
    environment: dict[str, object]
    metrics: dict[str, float]
    predictions: pd.DataFrame  # id, prediction: a row a dialogue
    log: pd.DataFrame  # step, epoch, loss, eval_loss, learning_rate, seconds
    # id, kind, reference, wrong: see module `likelihood`; empty in older records.
    likelihood: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def name(self) -> str:
        """The method's name, as tables and figures call the run."""
        return self.config.method

    @property
    def experiment(self) -> Experiment:
        """The experiment as far as using the model takes it: without data and settings of training."""
        asked = self.config
        generation = Generation(**asked.generation)
        return Experiment(
            asked.experiment, "", asked.model, asked.dataset, {}, {}, asked.max_prompt_tokens, generation, asked.prompt
        )

    @property
    def date(self) -> str:
        """The day it was made."""
        return str(self.environment["date"])[:10]

    @property
    def is_reference(self) -> bool:
        """Whether it is one of the committed records, made by the authors."""
        return OUTPUTS / "reference" in self.folder.resolve().parents

    @property
    def weights(self) -> Path | None:
        """The folder with the trained model or adapter, if it is there: committed records have none."""
        return next((path for name in ("model", "adapter") if (path := self.folder / name).exists()), None)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON: whole, or not at all; of several processes the first writes. Raises `DiskFull`."""
    if not processes.is_first():
        return
    temporary = path.with_suffix(".partial")
    with damage.writing(path.parent):
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
        os.replace(temporary, path)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write CSV in UTF-8 with LF lines: whole, or not at all; the first of several processes. Raises `DiskFull`."""
    if not processes.is_first():
        return
    temporary = path.with_suffix(".partial")
    with damage.writing(path.parent):
        table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        os.replace(temporary, path)


def read_config(path: Path) -> RunConfig:
    """What a record's run was asked for. Raises `RecordError` where keys are unknown or missing."""
    content = read_json(path)
    content.setdefault("options", {})
    known = {entry.name for entry in dataclasses.fields(RunConfig)}
    if odd := sorted(known.symmetric_difference(content)):
        raise RecordError(f"{path}: unknown or missing keys {', '.join(odd)}. Move the folder away and run again.")
    return RunConfig(**content)


def read(folder: Path) -> Run:
    """The record in a folder.

    Raises:
        RecordError: A file is missing or damaged.
    """
    try:
        log, likelihood = folder / "training_log.csv", folder / "likelihood.csv"
        return Run(
            folder=folder,
            config=read_config(folder / "config.json"),
            environment=read_json(folder / "environment.json"),
            metrics=read_json(folder / "metrics.json"),
            predictions=_read_predictions(folder / "predictions.csv"),
            log=pd.read_csv(log) if log.exists() else pd.DataFrame(),
            likelihood=pd.read_csv(likelihood) if likelihood.exists() else pd.DataFrame(),
        )
    except (OSError, ValueError, pd.errors.ParserError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(
            f"The record in {folder} cannot be read ({error}). Move the folder away and run again."
        ) from None


def write_predictions(path: Path, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Write a row a dialogue. Raises `DiskFull`.

    A spreadsheet would compute what begins like a formula: an apostrophe stands before it, as OWASP advises
    (owasp.org/www-community/attacks/CSV_Injection), and is taken away again when a record is read.
    """
    safe = [f"'{text}" if _FORMULA.match(text) else text for text in texts]
    write_csv(path, pd.DataFrame({"id": ids, "prediction": safe}))


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def _read_predictions(path: Path) -> pd.DataFrame:
    table = pd.DataFrame(read_rows(path))
    if not {"id", "prediction"} <= set(table) or table[["id", "prediction"]].isna().any(axis=None):
        raise ValueError(f"{path.name} does not have an id and a prediction in each row")
    table["prediction"] = [
        text[1:] if text.startswith("'") and _FORMULA.match(text) else text for text in table["prediction"]
    ]
    return table


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises `RecordError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content
    except FileNotFoundError:
        raise RecordError(f"{path} is missing. Move its folder away and run again.") from None
    except ValueError as error:
        raise RecordError(f"{path} is not JSON ({error}). Move its folder away and run again.") from None


def collect(experiment: str, outputs: str | Path = OUTPUTS) -> list[Run]:
    """All finished runs of an experiment below `outputs`; where there are none, the committed reference records."""
    for root in (Path(outputs) / experiment, OUTPUTS / "reference" / experiment):
        if folders := _finished(root, "*/seed-*"):
            return sorted((read(folder) for folder in folders), key=_order)
    return []


def find(place: Path, *, reference: bool = True) -> list[Run]:
    """The runs in a folder, or of a name below `outputs` as quickstart/full: one, or one a seed.

    Args:
        place: The folder or name.
        reference: Whether the committed records are looked through too.

    Raises:
        ConfigurationError: There is none.
    """
    for folder in (place, OUTPUTS / place, *([OUTPUTS / "reference" / place] if reference else [])):
        if (folder / "config.json").exists():
            return [read(folder)]
        if seeds := _finished(folder, "seed-*"):
            return [read(seed) for seed in seeds]
    raise ConfigurationError(f"There is no run {place}. `study` makes the runs of quickstart.")


def _finished(root: Path, pattern: str) -> list[Path]:
    """Folders of finished runs; those of unfinished ones have a dot in their name."""
    return sorted(path.parent for path in root.glob(f"{pattern}/metrics.json") if "." not in path.parent.name)


def _order(run: Run) -> tuple[int, str, int]:
    names = list(METHODS)
    return (names.index(run.name) if run.name in names else len(names), run.name, run.config.seed)


def environment() -> dict[str, object]:
    """Versions, device, commit and time; `processes` and the device's name say where there were several."""
    from . import hardware  # not above: reading a record takes no torch

    several = {}
    if processes.count() > 1:
        several = {"device": f"{processes.count()} x {hardware.describe()['device']}", "processes": processes.count()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **hardware.describe(),
        **several,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the code, or what the variable STUDY_COMMIT names where there is no repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("STUDY_COMMIT", "unknown")
