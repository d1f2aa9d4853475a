"""A run on its way: where its files are, and what an interrupted sitting left of it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import filelock
import pandas as pd
from transformers.trainer_utils import get_last_checkpoint

from . import models
from .callbacks import TENSORBOARD
from .disk import find_corrupt_file, set_aside, write_csv, write_json
from .experiments import Experiment, Generation, Method, Settings
from .runs import Run, RunConfig, read, read_config
from .training import SummarizationTrainer

_LOG_COLUMNS = ("step", "epoch", "loss", "eval_loss", "eval_rouge2", "learning_rate", "seconds")
_CHECKPOINT_FILES = ("*model*", "optimizer*", "scheduler.pt", "trainer_state.json")  # sharded or not


@dataclass(frozen=True)
class PreparedRun:
    """A run to be made, or one that is made already (`record`)."""

    experiment: Experiment
    method: Method
    splits: datasets.DatasetDict
    config: RunConfig
    folder: Path  # of the finished record
    record: Run | None = None
    lock: filelock.BaseFileLock | None = None  # held while the run is made

    @property
    def settings(self) -> Settings | None:
        """The method's settings in this experiment; None where nothing is trained."""
        return self.experiment.settings_for(self.method)

    @property
    def generation(self) -> Generation:
        """How the run's summaries are generated."""
        return self.experiment.generation_for(self.method)

    @property
    def tmp_dir(self) -> Path:
        """Where the files of an unfinished run are."""
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def checkpoints(self) -> Path:
        """Trainer's output folder."""
        return self.tmp_dir / "checkpoints"

    @property
    def checkpoint(self) -> str | None:
        """Where an interrupted training resumes, as `Trainer.train(resume_from_checkpoint=...)` takes it."""
        return get_last_checkpoint(self.checkpoints) if self.checkpoints.exists() else None

    @property
    def weights(self) -> Path | None:
        """Where the trained model or adapter is, or will be; None where nothing is trained."""
        folder = self.folder if self.record else self.tmp_dir
        return folder / ("adapter" if self.method.peft else "model") if self.method.is_trained else None

    @property
    def needs_training(self) -> bool:
        """Whether there is something to train that has not been trained."""
        return self.method.is_trained and not self.weights.exists()

    def save(self, trainer: SummarizationTrainer, state_dict: Mapping[str, object] | None = None) -> None:
        """Save what was trained, by `state_dict` where the model has only a part of it, its log and what it cost."""
        log = pd.DataFrame(trainer.state.log_history)
        log = log[[name for name in _LOG_COLUMNS if name in log]]
        write_csv(self.tmp_dir / "training_log.csv", log[log[["loss", "eval_loss"]].notna().any(axis=1)])
        write_json(self.tmp_dir / "training.json", trainer.costs())
        if (self.checkpoints / TENSORBOARD).exists():
            shutil.copytree(self.checkpoints / TENSORBOARD, self.tmp_dir / TENSORBOARD, dirs_exist_ok=True)
        models.save(trainer.bundle, self.weights, self.experiment.model, state_dict)

    def finished_record(self) -> Run | None:
        """The run's finished record: with the same key, and with its weights where it is trained."""
        if not (self.folder / "metrics.json").exists():
            return None
        record = read(self.folder)
        is_whole = record.config.key == self.config.key and (record.weights or not self.method.is_trained)
        return record if is_whole else None

    def restore_kept_files(self) -> None:
        """Put this run's files in their places, which a run with another key, or being killed, has kept them from."""
        for place in (self.folder, self.tmp_dir):
            kept = place.with_name(f"{place.name}.{self.config.key}")
            if kept.exists():
                self._remove_or_keep(place)
                kept.rename(place)
        if _key_of(self.tmp_dir) == self.config.key and (self.tmp_dir / "metrics.json").exists():
            self.move_into_place()

    def _remove_or_keep(self, place: Path) -> None:
        """Remove what is in a place, but keep what a run with another key left there, under a name with that key."""
        key = _key_of(place)
        if key in (None, self.config.key):
            shutil.rmtree(place, ignore_errors=True)
        else:
            kept = place.replace(place.with_name(f"{place.name}.{key}"))
            print(f"{place}: left by a run with other settings, data or model; kept as {kept.name}.")

    def recover(self) -> None:
        """Leave in `tmp_dir` nothing but what this run can resume from, and say what is set aside."""
        if self.tmp_dir.exists() and _key_of(self.tmp_dir) != self.config.key:
            self._remove_or_keep(self.tmp_dir)
        self.tmp_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.tmp_dir / "config.json", asdict(self.config))
        if (epochs := self.checkpoints / "epochs").exists() and (corrupt := find_corrupt_file(epochs)):
            print(f"{corrupt} is damaged: the training begins anew.")
            shutil.rmtree(self.checkpoints)
        checkpoints = sorted(self.checkpoints.glob("checkpoint-*[0-9]"), key=lambda path: (len(path.name), path.name))
        for folder in filter(None, (*checkpoints, self.weights)):
            if folder.exists() and (reason := _why_unusable(folder)):
                print(f"{folder}: {reason}; set aside as {set_aside(folder, self.tmp_dir).name}.")

    def move_into_place(self) -> None:
        """Replace the run's earlier record, if there is one, without what only training needed."""
        for folder in (self.checkpoints, *self.tmp_dir.glob("*.damaged")):
            shutil.rmtree(folder, ignore_errors=True)
        self._remove_or_keep(self.folder)
        (self.tmp_dir / "training.json").unlink(missing_ok=True)
        self.tmp_dir.rename(self.folder)


def _key_of(folder: Path) -> str | None:
    """The key of the run whose files are in a folder; None where there are none."""
    path = folder / "config.json"
    return read_config(path).key if path.exists() else None


def _why_unusable(folder: Path) -> str | None:
    """Why training cannot resume from a checkpoint, or weights cannot be used; None where they can."""
    if corrupt := find_corrupt_file(folder):
        return f"{corrupt.name} is damaged"
    if not folder.name.startswith("checkpoint-"):
        return None
    if missing := [name for name in _CHECKPOINT_FILES if not any(folder.glob(name))]:
        return f"{missing[0]} is missing"
    file = folder / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    if "best_model_checkpoint" not in state:
        return f"{file.name} is damaged"
    if state["best_model_checkpoint"]:
        # Where the outputs were moved, Trainer would silently take the last weights for the best ones.
        best = folder.with_name(Path(state["best_model_checkpoint"]).name)
        if not best.exists():
            return f"the best checkpoint so far, {best.name}, is not there"
        file.write_text(json.dumps(state | {"best_model_checkpoint": str(best)}), encoding="utf-8")
    return None
