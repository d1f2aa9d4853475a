"""A run on its way: where its files are, and what an interrupted sitting left of it."""

import contextlib
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
from .errors import UserError
from .experiments import Experiment, Generation, Method, Settings
from .runs import Run, RunConfig, read, read_config
from .training import SummarizationTrainer

# Data-loading workers inherit the lock of a process that was killed; they notice within 5 s (torch's
# MP_STATUS_CHECK_INTERVAL).
_LOCK_SECONDS = 6.0
_LOG_COLUMNS = ("step", "epoch", "loss", "eval_loss", "eval_rouge2", "learning_rate", "seconds")
# What Trainer resumes from besides the weights; sharded over several processes (FSDP), as accelerate names the files.
_STATE_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
_SHARDED_STATE_FILES = ("pytorch_model_fsdp_0", "optimizer_0", "trainer_state.json", "scheduler.pt")


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
        """Where the files of an unfinished run are, Trainer's in its folder `checkpoints`."""
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
        """Save what was trained, its log and what it cost; from here on the run needs no training.

        `state_dict` holds all weights where the trainer's model has only a part of them.
        """
        log = pd.DataFrame(trainer.state.log_history)
        log = log[[name for name in _LOG_COLUMNS if name in log]]
        write_csv(self.tmp_dir / "training_log.csv", log[log[["loss", "eval_loss"]].notna().any(axis=1)])
        write_json(self.tmp_dir / "training.json", trainer.costs())
        shutil.copytree(self.checkpoints / TENSORBOARD, self.tmp_dir / TENSORBOARD, dirs_exist_ok=True)
        models.save(trainer.bundle, self.weights, self.experiment.model, state_dict)

    def finished_record(self) -> Run | None:
        """The run's finished record: with the same key, and with its weights where it is trained."""
        if not (self.folder / "metrics.json").exists():
            return None
        record = read(self.folder)
        is_whole = record.config.key == self.config.key and (record.weights or not self.method.is_trained)
        return record if is_whole else None

    def is_complete(self) -> bool:
        """Whether an unfinished run lacks nothing but the move into its place."""
        return (self.tmp_dir / "metrics.json").exists() and self._owns_files()

    def _owns_files(self) -> bool:
        path = self.tmp_dir / "config.json"
        return path.exists() and read_config(path).key == self.config.key

    def clear(self) -> None:
        """Leave in `tmp_dir` nothing but what this run can resume from, and say what is set aside."""
        if self.tmp_dir.exists() and not self._owns_files():
            shutil.rmtree(self.tmp_dir)
        self.tmp_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.tmp_dir / "config.json", asdict(self.config))
        if self.weights and self.weights.exists() and (corrupt := find_corrupt_file(self.weights)):
            print(f"{corrupt} is damaged: set aside as {set_aside(self.weights).name}.")
        checkpoints = [path for path in self.checkpoints.glob("checkpoint-*") if path.name[11:].isdecimal()]
        for checkpoint in sorted(checkpoints, key=lambda path: int(path.name[11:])):
            if reason := _why_unusable(checkpoint):  # moved out of the folder in which Trainer counts its checkpoints
                print(f"{checkpoint}: {reason}; set aside as {set_aside(checkpoint, self.tmp_dir).name}.")

    def move_into_place(self) -> None:
        """Replace whatever record was there before, without what only training needed."""
        for folder in (self.checkpoints, *self.tmp_dir.glob("*.damaged"), self.folder):
            shutil.rmtree(folder, ignore_errors=True)
        (self.tmp_dir / "training.json").unlink(missing_ok=True)
        self.tmp_dir.rename(self.folder)


def _why_unusable(checkpoint: Path) -> str | None:
    """Why training cannot resume from a checkpoint; None where it can."""
    is_sharded = (checkpoint / _SHARDED_STATE_FILES[0]).exists()
    for name in _SHARDED_STATE_FILES if is_sharded else _STATE_FILES:
        if not (checkpoint / name).exists():
            return f"{name} is missing"
    if not is_sharded and not any(checkpoint.glob("*.safetensors")):
        return "its weights are missing"
    if corrupt := find_corrupt_file(checkpoint):
        return f"{corrupt.name} is damaged"
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    if state["best_model_checkpoint"]:
        best = checkpoint.parent / Path(state["best_model_checkpoint"]).name
        if not best.exists():
            return f"the best checkpoint so far, {best.name}, is not there"
        # Where the outputs were moved, Trainer would silently take the last weights for the best ones.
        file.write_text(json.dumps(state | {"best_model_checkpoint": str(best)}), encoding="utf-8")
    return None


def lock_run(tmp_dir: Path) -> filelock.BaseFileLock:
    """Make the run in `tmp_dir` this process's own while the lock is held; locking it twice is locking it once.

    Raises:
        UserError: Another process is making the run.
    """
    path = tmp_dir.resolve().with_name(f"{tmp_dir.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=_LOCK_SECONDS, thread_local=False, is_singleton=True)
    if lock.is_locked and not path.exists():  # the outputs were deleted while a notebook was open
        lock.release(force=True)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"Another process is making the run in {tmp_dir}. Wait until it is done; of a notebook that was "
            f"interrupted, shut the kernel down. Then the same command goes on."
        ) from None
    return lock


def unlock(lock: filelock.BaseFileLock) -> None:
    """Let other processes have the run."""
    with contextlib.suppress(OSError):  # Windows does not delete open files: an empty one stays
        Path(lock.lock_file).unlink()
    lock.release(force=True)
