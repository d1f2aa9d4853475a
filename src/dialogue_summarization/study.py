"""One run of the study: load, train, summarize the test split, score, record. Notebooks and the command line end here.

`run` does it all. `prepare`, `Job.keep` and `finish` are its parts, for a notebook that trains in the open.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import datasets
import pandas as pd
import transformers
from transformers.trainer_utils import get_last_checkpoint

from . import damage, data, hardware, likelihood, locks, models, processes, runs
from .energy import Energy
from .experiments import ConfigurationError, Experiment, Method, Settings
from .generation import summarize
from .parallel import is_sharded, trainer_class
from .rouge import means
from .training import TENSORBOARD, SummarizationTrainer, encode, training_arguments


@dataclass(frozen=True)
class Job:
    """A run to be made, or made already (`record`). While it is made its files are in `partial`."""

    experiment: Experiment
    method: Method
    splits: datasets.DatasetDict
    config: runs.RunConfig
    folder: Path
    record: runs.Run | None

    @property
    def settings(self) -> Settings | None:
        """The method's settings in this experiment; None where nothing is trained."""
        return self.experiment.settings_for(self.method)

    @property
    def partial(self) -> Path:
        """Where the files of an unfinished run are."""
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def checkpoints(self) -> Path:
        """Trainer's output folder."""
        return self.partial / "checkpoints"

    @property
    def checkpoint(self) -> str | None:
        """Where an interrupted training goes on, as `Trainer.train(resume_from_checkpoint=...)` takes it."""
        return get_last_checkpoint(self.checkpoints) if self.checkpoints.exists() else None

    @property
    def weights(self) -> Path:
        """Where the trained model or adapter is, or will be."""
        place = self.folder if self.record else self.partial
        return place / ("adapter" if self.method.peft else "model")

    @property
    def needs_training(self) -> bool:
        """Whether there is something to train that has not been trained."""
        return self.method.trains and not self.weights.exists()

    def keep(self, trainer: SummarizationTrainer) -> None:
        """Save what was trained, its log and what it cost; from here on the run needs no training."""
        log = pd.DataFrame(trainer.state.log_history)
        columns = ["step", "epoch", "loss", "eval_loss", "eval_rouge2", "learning_rate", "seconds"]
        log = log[[name for name in columns if name in log]]
        runs.write_csv(self.partial / "training_log.csv", log[log[["loss", "eval_loss"]].notna().any(axis=1)])
        seconds = trainer.train_seconds
        pairs = trainer.pairs * trainer.state.epoch
        metrics = {"train_seconds": round(seconds, 2), "train_samples_per_second": round(pairs / seconds, 3)}
        if trainer.peak_memory is not None:
            metrics["peak_memory_bytes"] = trainer.peak_memory
        if trainer.joules is not None:
            metrics["train_joules"] = trainer.joules
        metrics |= models.count_parameters(trainer.model)
        runs.write_json(self.partial / "training.json", metrics)
        weights = trainer.whole_weights()
        if processes.is_first():
            if (events := self.checkpoints / TENSORBOARD).exists():
                shutil.copytree(events, self.partial / TENSORBOARD, dirs_exist_ok=True)
            models.save(trainer.parts, self.weights, self.experiment.model, weights)
        processes.wait()


def prepare(
    experiment: Experiment, method: Method, seed: int = 0, *, outputs: str | Path = runs.OUTPUTS, force: bool = False
) -> Job:
    """Check the data and find out what there is of a run: its finished record, or files of an interrupted one.

    A run is done when its key matches and its weights are there. Files of an interrupted run with another key are
    removed, damaged ones set aside. `force` sets a finished record aside, which is replaced only when the new one is
    complete. A run to be made is this process's own from here until `finish`, or the process's end.

    Raises:
        DataError: The data cannot be used.
        RecordError: The run's record is damaged.
        RunBusy: Another process is making the run.
    """
    splits = data.load(experiment)
    sizes = {split: len(rows) for split, rows in splits.items()}
    config = configure(experiment, method, seed, sizes, data.fingerprint(splits))
    folder = Path(outputs) / experiment.name / method.name / f"seed-{seed}"
    with processes.first_goes_first():
        return _found(Job(experiment, method, splits, config, folder, None), force)


def configure(
    experiment: Experiment, method: Method, seed: int, dialogues: Mapping[str, int], data_fingerprint: str
) -> runs.RunConfig:
    """What a run is asked for, on data of so many dialogues a split and with that fingerprint."""
    settings = experiment.settings_for(method)
    return runs.RunConfig(
        experiment=experiment.name,
        method=method.name,
        model=experiment.model,
        dataset=experiment.dataset,
        seed=seed,
        prompt=experiment.prompt,
        max_prompt_tokens=experiment.max_prompt_tokens,
        generation=asdict(experiment.generation),
        settings=asdict(settings) if settings else None,
        peft={key: list(value) if isinstance(value, tuple) else value for key, value in method.peft.items()}
        if method.peft
        else None,
        options=method.options,
        dialogues=dict(dialogues),
        data_fingerprint=data_fingerprint,
        model_fingerprint=models.fingerprint(experiment.model),
    )


def _found(job: Job, force: bool) -> Job:
    """The job with what there is of it on disk, and nothing else left there."""
    if not force and not _is_complete(job) and (record := _record(job)):
        return _loaded(job, record)
    locks.hold(job.partial)
    if _is_complete(job):
        _publish(job)  # killed between the last file and the move
        locks.hold(job.partial)
    if not force and (record := _record(job)):
        locks.release(job.partial)
        return _loaded(job, record)
    name, config = f"{job.experiment.name}, {job.method.name}", job.config
    if not force and (job.folder / "metrics.json").exists():
        print(f"{name}: the record of {runs.read(job.folder).date} has other settings or no weights; "
              f"it is replaced when the new run is done.")  # fmt: skip
    if job.partial.exists() and not _is_of(job.partial, config):
        shutil.rmtree(job.partial)
    job.partial.mkdir(parents=True, exist_ok=True)
    runs.write_json(job.partial / "config.json", asdict(config))
    for line in damage.clean(job.partial):
        print(line)
    if job.checkpoint:
        print(f"{name}: going on from {Path(job.checkpoint).name}.")
    return job


def _record(job: Job) -> runs.Run | None:
    """The run's finished record, if there is one that serves."""
    if not (job.folder / "metrics.json").exists():
        return None
    record = runs.read(job.folder)
    return record if record.config.key == job.config.key and (record.weights or not job.method.trains) else None


def _loaded(job: Job, record: runs.Run) -> Job:
    print(f"{job.experiment.name}, {job.method.name}: loaded from the record of {record.date}; "
          f"FORCE = True (--force) runs it again.")  # fmt: skip
    return replace(job, record=record)


def train(job: Job) -> None:
    """Train a run's model, from its last checkpoint where there is one, and keep it."""
    trainer = trainer_for(job, data.unseen(job.splits["validation"], job.splits["train"]))
    trainer.train(resume_from_checkpoint=job.checkpoint)
    job.keep(trainer)


def trainer_for(job: Job, validation: datasets.Dataset, *, compiled: bool | None = None) -> SummarizationTrainer:
    """What trains a run's model, freshly loaded; `compiled` is `training_arguments`'."""
    model = models.load(job.experiment, job.method.quantization)
    transformers.set_seed(job.config.seed)  # what an adapter starts from, and dropout
    model = models.Model(models.adapt(model.network, job.method), model.tokenizer, model.family)
    rows = encode(job.splits["train"], model.family)
    sharded = is_sharded(model.network, job.method)
    return trainer_class()(
        model,
        job.settings,
        job.experiment.generation,
        validation,
        job.method,
        compiled=compiled,
        args=training_arguments(
            job.settings, job.checkpoints, model, rows, seed=job.config.seed, sharded=sharded, compiled=compiled
        ),
        train_dataset=rows,
        eval_dataset=encode(validation, model.family),
    )


def finish(job: Job) -> runs.Run:
    """Summarize the test split with the run's model as it was saved, score it once, and write the record."""
    if job.record:
        return job.record
    model = load_model(job)
    test = job.splits["test"]
    start = time.perf_counter()
    with Energy() as energy, hardware.PeakMemory() as peak:
        write = partial(summarize, model, generation=job.experiment.generation)
        texts = processes.shared(write, list(test["dialogue"]))
    seconds = time.perf_counter() - start
    metrics = {name: round(value, 6) for name, value in means(texts, test["summaries"]).items()}
    metrics |= {"dialogues": len(test), "references": sum(len(references) for references in test["summaries"])}
    metrics |= {"generate_seconds": round(seconds, 2)}
    if (joules := processes.combined(sum, energy.joules)) is not None:
        metrics["generate_joules"] = joules
    if (memory := processes.combined(max, peak.bytes)) is not None:
        metrics["generate_memory_bytes"] = memory
    if job.method.trains:
        metrics |= runs.read_json(job.partial / "training.json")
    else:
        metrics |= models.count_parameters(model.network) | {"trainable_parameters": 0}
    if job.method.peft:
        metrics["adapter_bytes"] = sum(path.stat().st_size for path in job.weights.glob("*.safetensors"))
    runs.write_predictions(job.partial / "predictions.csv", test["id"], texts)
    runs.write_csv(job.partial / "likelihood.csv", likelihood.run_test(model, test))
    runs.write_json(job.partial / "environment.json", runs.environment())
    runs.write_json(job.partial / "metrics.json", metrics)
    _publish(job)
    processes.wait()
    return runs.read(job.folder)


def load_model(job: Job) -> models.Model:
    """The model of a run, ready to write summaries: untrained, or as it was saved."""
    return models.ready(job.experiment, job.weights if job.method.trains else None, job.method.quantization)


def model_of(record: runs.Run) -> models.Model:
    """The model of a finished run, ready to write summaries.

    Raises:
        ConfigurationError: Its weights are not there, as those of committed records.
    """
    if record.weights is None and record.config.settings is not None:
        name = record.config.experiment
        raise ConfigurationError(f"The weights of {record.folder} are not there: `study {name}` makes them.")
    return models.ready(record.experiment, record.weights, record.config.options.get("quantization"))


def run(
    experiment: Experiment, method: Method, seed: int = 0, *, outputs: str | Path = runs.OUTPUTS, force: bool = False
) -> runs.Run:
    """A finished run: loaded where it was made before, resumed where it was interrupted, otherwise made."""
    job = prepare(experiment, method, seed, outputs=outputs, force=force)
    if job.needs_training:
        train(job)
    return finish(job)


def _is_of(folder: Path, config: runs.RunConfig) -> bool:
    """Whether the files of an unfinished run are of this one; without their configuration they cannot be known."""
    return (folder / "config.json").exists() and runs.read_config(folder / "config.json").key == config.key


def _is_complete(job: Job) -> bool:
    """Whether an unfinished run lacks nothing but the move into its place."""
    return (job.partial / "metrics.json").exists() and _is_of(job.partial, job.config)


def _publish(job: Job) -> None:
    """Move a complete record into place, whatever was there before, without what only training needed."""
    if not processes.is_first():
        return
    for folder in (job.checkpoints, *job.partial.glob("*.damaged")):
        shutil.rmtree(folder, ignore_errors=True)
    (job.partial / "training.json").unlink(missing_ok=True)
    old = job.folder.with_name(f"{job.folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if job.folder.exists():
        job.folder.rename(old)
    job.partial.rename(job.folder)
    shutil.rmtree(old, ignore_errors=True)
    locks.release(job.partial)
