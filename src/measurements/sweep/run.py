"""Train the trials of search spaces one after the other on one device: `python -m measurements sweep SPACE ...`.

Each trial adds a row to its space's CSV file as soon as it is done, and what is there already is skipped: an
interrupted sweep goes on with the same command. No weights are kept. Every trial begins with a freshly loaded model;
trials of one method follow one another, and share what was compiled for the first.
"""

import itertools
import shutil
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, DatasetDict

from dialogue_summarization import data, disk, errors, experiments, models, runs, study
from dialogue_summarization.commands.tune import train_and_score
from dialogue_summarization.experiments import Experiment
from dialogue_summarization.prepared import PreparedRun

from ..short_training import TRAIN_ONLY
from . import records
from .trials import SearchSpace, Trial, search_space

VALIDATION = 250  # dialogues at most: a trial costs seconds
Part = tuple[int, int]  # number and count


class Common(NamedTuple):
    """What all trials of a sweep have in common."""

    experiment: Experiment
    splits: DatasetDict


def main(names: Sequence[str], dataset: str, outputs: Path, part: Part, compiled: bool) -> int:
    """Make the search spaces that are named; 1 where a method could not be trained."""
    common, failures = load(experiments.experiment("smollm2-dialogsum"), dataset), []
    for name in names:
        space = search_space(name, common.experiment, len(common.splits["train"]), outputs)
        failures += run(space, common, outputs, part, compiled)
    print("\n".join(["Not made:", *failures] if failures else ["Done."]))
    return 1 if failures else 0


def load(experiment: Experiment, source: str) -> Common:
    """The experiment on the dialogues of a source; for validation `VALIDATION` at most, no near-duplicates of train."""
    splits = data.load_source(source)
    # A record names the data, not where they lie on this machine.
    name = Path(source).resolve().name if Path(source).is_dir() else source
    splits["validation"] = _drawn(data.drop_near_duplicates(splits["validation"], splits["train"]), VALIDATION, 0)
    return Common(replace(experiment, dataset=name), splits)


def sample(splits: DatasetDict, train_fraction: float, seed: int) -> DatasetDict:
    """The splits with a fraction of the training dialogues; of one seed a smaller one is part of a larger one."""
    count = max(1, round(train_fraction * len(splits["train"])))
    return DatasetDict({**splits, "train": _drawn(splits["train"], count, seed)})


def _drawn(rows: Dataset, count: int, seed: int) -> Dataset:
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))


def run(space: SearchSpace, common: Common, outputs: Path, part: Part = (1, 1), compiled: bool = True) -> list[str]:
    """Train what is missing of a search space, and test what is to be tested.

    Args:
        space: The trials.
        common: What all of them have in common, as `load` gives it.
        outputs: Where the space's CSV file goes, and a folder with one record per test.
        part: Number and count, where several processes each take some of the methods.
        compiled: Whether steps are compiled where the machine can.

    Returns:
        A line for each method that could not be trained.

    Raises:
        RecordError: The space's file is damaged or of another sweep.
    """
    path, failures = outputs / f"{space.name}.csv", []
    with tempfile.TemporaryDirectory() as root:
        prepared = [(trial, prepare(trial, common, Path(root, str(place)))) for place, trial in enumerate(space.trials)]
        if foreign := set(records.read(path)["key"]) - {one.config.key for _, one in prepared}:
            raise errors.RecordError(
                f"{path} holds {len(foreign)} trials of another sweep (other data, settings or model): {min(foreign)}. "
                f"Name another folder with --outputs."
            )
        for name in list(dict.fromkeys(trial.method.name for trial in space.trials))[part[0] - 1 :: part[1]]:
            torch._dynamo.reset()
            own = [pair for pair in prepared if pair[0].method.name == name]
            try:
                for _, rates in itertools.groupby(own, lambda pair: (pair[0].train_fraction, pair[0].seed)):
                    _run_rates(list(rates), space, path, compiled)
            except RuntimeError as error:  # compiling and capturing may fail for one method: the others are made
                if not isinstance(error, errors.ModelError):
                    traceback.print_exc()
                failures.append(f"{space.name}, {name}: {type(error).__name__}: {error}")
                print(failures[-1], flush=True)
            clear_device_cache(garbage_collection=True)
    return failures


def prepare(trial: Trial, common: Common, folder: Path) -> PreparedRun:
    """The run that a trial is, to be made in a folder of its own."""
    experiment, splits = trial.experiment(common.experiment), sample(common.splits, trial.train_fraction, trial.seed)
    config = study.make_config(experiment, trial.method, trial.seed, splits)
    return PreparedRun(experiment, trial.method, splits, config, folder / "run")


def _run_rates(rates: list[tuple[Trial, PreparedRun]], space: SearchSpace, path: Path, compiled: bool) -> None:
    """Trials that differ in their learning rate alone; the best of them is tested, where the space is."""
    for trial, prepared in rates:
        if prepared.config.key not in set(records.read(path)["key"]):
            records.append(path, train(trial, prepared, compiled))
    scores = records.score(records.read(path).set_index("key"))
    trial, prepared = max(rates, key=lambda pair: scores[pair[1].config.key])
    if space.tested and scores[prepared.config.key] >= 0:  # it did not diverge
        name = f"{trial.method.name}/share-{trial.train_fraction:g}/seed-{trial.seed}"
        _test(trial, prepared, path.with_suffix("") / name, compiled)
    for _, one in rates:
        shutil.rmtree(one.folder.parent, ignore_errors=True)


def _test(trial: Trial, prepared: PreparedRun, folder: Path, compiled: bool) -> None:
    """Summarize and score the test split as the study does; keep the record without the weights."""
    if (folder / "config.json").exists():
        if runs.read_config(folder / "config.json").key != prepared.config.key:
            raise errors.RecordError(f"{folder} is of another trial than is best now. Move the folder away.")
        return
    if prepared.needs_training:  # trained in an earlier sitting: its weights are gone
        train(trial, prepared, compiled)
    final = replace(prepared, folder=folder)
    final = replace(final, lock=disk.lock_run(final.tmp_dir))
    shutil.rmtree(final.tmp_dir, ignore_errors=True)
    shutil.move(prepared.tmp_dir, final.tmp_dir)
    shutil.rmtree(study.finish(final).weights)


def train(trial: Trial, prepared: PreparedRun, compiled: bool) -> dict[str, object]:
    """Train a trial and score it on validation: its row. What was trained is left in the run's folder."""
    start = time.perf_counter()
    print(f"{trial.method.name}, rate {trial.learning_rate:.3g}, {trial.train_fraction:g} of train, seed {trial.seed}")
    row: dict[str, object] = {"key": prepared.config.key, "method": trial.method.name, **trial.lora_columns}
    row |= {"learning_rate": trial.learning_rate, "share": trial.train_fraction, "seed": trial.seed}
    row |= {f"{split}_dialogues": len(prepared.splits[split]) for split in ("train", "validation")}
    prepared.recover()
    options = {"compiled": compiled} if torch.cuda.is_available() else {}
    trainer = study.make_trainer(prepared, prepared.splits["validation"], TRAIN_ONLY, **options)
    try:
        row |= train_and_score(trainer).mean().round(6).to_dict()
        row["eval_loss"] = trainer.evaluate()["eval_loss"]
        row["loss"] = [log["loss"] for log in trainer.state.log_history if "loss" in log][-1]
        prepared.save(trainer)
        row |= {"diverged": 0} | trainer.costs()
        if trial.method.peft:
            row["adapter_bytes"] = sum(file.stat().st_size for file in prepared.weights.glob("*.safetensors"))
    except errors.TrainingDiverged as error:
        print(error, flush=True)
        row |= {"diverged": 1} | models.count_parameters(trainer.model)
    row |= {"steps": trainer.state.global_step, "train_tokens": sum(map(len, trainer.train_dataset["labels"]))}
    row |= {"epochs": trial.epochs, "steps_are": "fast" if getattr(trainer, "is_fast", False) else "plain"}
    del trainer
    clear_device_cache(garbage_collection=True)
    return runs.environment() | row | {"seconds": round(time.perf_counter() - start, 2)}
