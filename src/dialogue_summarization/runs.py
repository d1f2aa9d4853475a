"""The record of a run on disk: write it, read it, list them.

What was asked (`config.json`), what was measured (`metrics.json`, `predictions.csv`, `scores.csv`, `training_log.csv`)
and where (`environment.json`) are apart from one another.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import datasets
import pandas as pd

from . import hardware
from .data import OUTPUTS, ROOT, SPLITS, fingerprint, load
from .disk import write_csv, write_json
from .errors import DataError, RecordError
from .experiments import METHODS, Experiment, Generation
from .rouge import TYPES

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "rouge-score")
# What a run is called changes nothing in its result; `data_fingerprint` is of all splits.
_NOT_IN_KEY = ("experiment", "method", "model", "dataset", "split_fingerprints")
# How a text begins that a spreadsheet would compute: owasp.org/www-community/attacks/CSV_Injection.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


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
    split_fingerprints: Mapping[str, str] = field(default_factory=dict)  # empty in records of earlier versions

    @property
    def key(self) -> str:
        """A hash over all that changes the result: two runs with the same key are the same run.

        `options` was added later and counts only where it is not empty, so that the keys of older records stay.
        """
        content = {name: value for name, value in asdict(self).items() if name not in _NOT_IN_KEY}
        if not self.options:
            del content["options"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)  # tables have no one truth value
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
        config, generation = self.config, Generation(**self.config.generation)
        base = Experiment(config.experiment, "", config.model, config.dataset, settings={})
        return replace(base, max_prompt_tokens=config.max_prompt_tokens, generation=generation, prompt=config.prompt)

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
        folders = [path.parent for path in root.glob("*/seed-*/metrics.json")]
        if found := [read(folder) for folder in folders if "." not in folder.name]:  # a dot: an unfinished run's
            order = {name: number for number, name in enumerate(METHODS)}  # further methods behind these
            return sorted(found, key=lambda run: (order.get(run.name, len(order)), run.name, run.config.seed))
    return []


def read(folder: Path) -> Run:
    """The record in a folder. Raises `RecordError` where a file is missing or damaged."""
    try:
        log = folder / "training_log.csv"
        predictions, scores = _read_table(folder / "predictions.csv"), _read_table(folder / "scores.csv")
        metrics, environment = read_json(folder / "metrics.json"), read_json(folder / "environment.json")
        if list(predictions["id"]) != list(scores["id"]) or len(scores) != metrics["dialogues"]:
            raise ValueError("predictions.csv, scores.csv and metrics.json are not of the same dialogues")
        texts = [text[1:] if text[:1] == "'" and _FORMULA.match(text) else text for text in predictions["prediction"]]
        return Run(
            folder=folder,
            config=read_config(folder / "config.json"),
            environment=environment,
            metrics=metrics,
            predictions=predictions.assign(prediction=texts),
            scores=scores.set_index("id")[list(TYPES)].astype(float),
            log=pd.read_csv(log) if log.exists() else pd.DataFrame(),
        )
    except (OSError, ValueError, KeyError) as error:  # pandas' own errors and ours are ValueErrors
        raise RecordError(f"The record in {folder} cannot be read ({error}). Move its folder away.") from None


def require_data(run: Run, splits: Mapping[str, datasets.Dataset]) -> None:
    """Raise `DataError` where a run was made with other dialogues; the error names the split, if the record knows it.

    Of records without fingerprints of their splits only all three together can be compared.
    """
    known = run.config.split_fingerprints
    changed = [name for name, rows in splits.items() if known and known[name] != fingerprint({name: rows})]
    if changed or (not known and len(splits) == len(SPLITS) and fingerprint(splits) != run.config.data_fingerprint):
        which = f" (changed: {', '.join(changed)})" if changed else ""
        remedy = "Name that (--dataset) or make the run anew. Its predictions.csv is scored against any data."
        raise DataError(f"This is not the data that {run.folder} was made with{which}. {remedy}")


def load_data(run: Run, source: str) -> datasets.DatasetDict:
    """The data that a run was made with, from a source. Raises `DataError` where that does not hold it."""
    splits = load(replace(run.experiment, dataset=source, dialogues=run.config.dialogues))
    require_data(run, splits)
    return splits


def _read_table(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)  # an id may be NA, a summary empty
    if table.isna().any(axis=None):
        raise ValueError(f"{path.name}: a row is cut short")
    return table


def read_config(path: Path) -> RunConfig:
    """What a record's run was asked for. Raises `RecordError` where keys are unknown or missing."""
    try:
        return RunConfig(**read_json(path))
    except TypeError as error:
        raise RecordError(f"{path}: unknown or missing keys ({error}). Move its folder away.") from None


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises `RecordError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is missing or not JSON ({error}). Move its folder away.") from None


def write_results(
    folder: Path, texts: Sequence[str], scores: pd.DataFrame, metrics: dict[str, float], environment: dict[str, object]
) -> None:
    """Write what a run gave: summaries and their `scores` (indexed by id), where it was made, and last its figures."""
    write_predictions(folder / "predictions.csv", scores.index, texts)
    write_csv(folder / "scores.csv", scores.reset_index())
    write_json(folder / "environment.json", environment)
    write_json(folder / "metrics.json", metrics)


def write_predictions(path: Path, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Write a row per dialogue.

    A text that a spreadsheet would compute gets an apostrophe before it, as OWASP advises
    (owasp.org/www-community/attacks/CSV_Injection), which is taken away again when a record is read.
    """
    safe = [f"'{text}" if _FORMULA.match(text) else text for text in texts]
    write_csv(path, pd.DataFrame({"id": ids, "prediction": safe}))


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
