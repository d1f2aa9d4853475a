"""The record of a run on disk: write it, read it, list them.

What was asked (`config.json`), what was measured (`metrics.json`, `predictions.csv`, `scores.csv`, `training_log.csv`)
and where (`environment.json`) are apart from one another.
"""

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

from . import hardware
from .data import ROOT, read_rows
from .disk import write_csv
from .errors import RecordError
from .experiments import METHODS, Experiment, Generation
from .rouge import TYPES

OUTPUTS = ROOT / "outputs"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "rouge-score")
_NAMES = ("experiment", "method", "model", "dataset")  # what a run is called changes nothing in its result
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how a text begins that a spreadsheet would compute


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run's result, and what things are called.

    `settings` is None where nothing is trained. `options` are `Method.options`.
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
        """A hash over all that changes the result: two runs with the same key are the same run.

        A field that was added later counts only where it differs from its default, so that keys stay.
        """
        content = {name: value for name, value in asdict(self).items() if name not in _NAMES}
        if not self.options:
            del content["options"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """A finished run, as its record has it."""

    folder: Path
    config: RunConfig
    environment: dict[str, object]
    metrics: dict[str, float]
    predictions: pd.DataFrame  # id, prediction: a row per test dialogue
    scores: pd.DataFrame  # ROUGE of each, indexed by id, a column per type
    log: pd.DataFrame  # step, epoch, loss, eval_loss, learning_rate, seconds; empty where nothing was trained

    @property
    def name(self) -> str:
        """The method's name, as tables and figures call the run."""
        return self.config.method

    @property
    def experiment(self) -> Experiment:
        """What using the model takes: its base, prompt, length limit and decoding, as the run had them."""
        config = self.config
        return Experiment(
            name=config.experiment,
            title="",
            model=config.model,
            dataset=config.dataset,
            settings={},
            max_prompt_tokens=config.max_prompt_tokens,
            generation=Generation(**config.generation),
            prompt=config.prompt,
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
        """The folder with the trained model or adapter, if it is there: most committed records have none."""
        return next((path for name in ("model", "adapter") if (path := self.folder / name).exists()), None)


def collect(experiment: str, outputs: str | Path = OUTPUTS) -> list[Run]:
    """All finished runs of an experiment below `outputs`; where there are none, the committed reference records."""
    for root in (Path(outputs) / experiment, OUTPUTS / "reference" / experiment):
        if folders := _finished(root, "*/seed-*"):
            return sorted((read(folder) for folder in folders), key=_order)
    return []


def _finished(root: Path, pattern: str) -> list[Path]:
    """Folders of finished runs; those of unfinished ones have a dot in their name."""
    return sorted(path.parent for path in root.glob(f"{pattern}/metrics.json") if "." not in path.parent.name)


def _order(run: Run) -> tuple[int, str, int]:
    names = list(METHODS)
    return (names.index(run.name) if run.name in names else len(names), run.name, run.config.seed)


def read(folder: Path) -> Run:
    """The record in a folder.

    Raises:
        RecordError: A file is missing or damaged.
    """
    try:
        log = folder / "training_log.csv"
        predictions, scores = _read_predictions(folder / "predictions.csv"), _read_scores(folder / "scores.csv")
        if list(predictions["id"]) != list(scores.index):
            raise ValueError("predictions.csv and scores.csv are not of the same dialogues")
        return Run(
            folder=folder,
            config=read_config(folder / "config.json"),
            environment=read_json(folder / "environment.json"),
            metrics=read_json(folder / "metrics.json"),
            predictions=predictions,
            scores=scores,
            log=pd.read_csv(log) if log.exists() else pd.DataFrame(),
        )
    except RecordError:
        raise
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise RecordError(
            f"The record in {folder} cannot be read ({error}). Move the folder away and run again."
        ) from None


def read_config(path: Path) -> RunConfig:
    """What a record's run was asked for. Raises `RecordError` where keys are unknown or missing."""
    content = {"options": {}} | read_json(path)
    known = {entry.name for entry in dataclasses.fields(RunConfig)}
    if odd := sorted(known.symmetric_difference(content)):
        raise RecordError(f"{path}: unknown or missing keys {', '.join(odd)}. Move the folder away and run again.")
    return RunConfig(**content)


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


def write_predictions(path: Path, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Write a row per dialogue.

    A text that a spreadsheet would compute gets an apostrophe before it, as OWASP advises
    (owasp.org/www-community/attacks/CSV_Injection), which is taken away again when a record is read.
    """
    safe = [f"'{text}" if _FORMULA.match(text) else text for text in texts]
    write_csv(path, pd.DataFrame({"id": ids, "prediction": safe}))


def _read_predictions(path: Path) -> pd.DataFrame:
    table = pd.DataFrame(read_rows(path))
    if not {"id", "prediction"} <= set(table) or table[["id", "prediction"]].isna().any(axis=None):
        raise ValueError(f"{path.name} does not have an id and a prediction in each row")
    table["prediction"] = [
        text[1:] if text.startswith("'") and _FORMULA.match(text) else text for text in table["prediction"]
    ]
    return table


def _read_scores(path: Path) -> pd.DataFrame:
    table = pd.DataFrame(read_rows(path))  # pandas would read an id like NA as none
    if list(table) != ["id", *TYPES] or table.isna().any(axis=None):
        raise ValueError(f"{path.name} does not have an id and {', '.join(TYPES)} in each row")
    return table.set_index("id").astype(float)


def environment() -> dict[str, object]:
    """Time, device, versions and commit."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **hardware.describe(),
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
