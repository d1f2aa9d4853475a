"""Train many points one after the other on one device: `python -m dialogue_summarization.sweep GROUP ... `.

A point is a method at a learning rate on a share of the data (module `sweep_points`). Each adds a row to the group's
CSV file as soon as it is done, and what is there already is skipped: an interrupted sweep goes on with the same
command. No weights are kept.

Every point begins with a freshly loaded model. Points of one method follow one another, and share what was compiled
for the first: blocks of the same shapes are compiled once in a process.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache

from . import data, experiments, hardware, models, report, rouge, runs, study, sweep_points, sweep_records
from .experiments import ConfigurationError, Experiment
from .packaged import ModelError
from .sweep_points import Group, Point
from .trainer_parts import EventFiles
from .training import SummarizationTrainer, TrainingDiverged, train_alone

EXPERIMENT = "smollm2-dialogsum"
VALIDATION = 250  # dialogues at most: a point costs seconds


@dataclass(frozen=True, eq=False)
class Material:
    """What the points of a sweep share: an experiment and its dialogues, of validation those that a point sees."""

    experiment: Experiment
    splits: datasets.DatasetDict

    @cache  # noqa: B019 - there is one
    def sample(self, share: float, seed: int) -> tuple[datasets.DatasetDict, str]:
        """The splits with that share of the training dialogues, and their fingerprint.

        Of the same seed a smaller share is part of a larger one; the dialogues stay in their order.
        """
        train = self.splits["train"]
        count = max(1, round(share * len(train)))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:count])
        splits = datasets.DatasetDict({**self.splits, "train": train.select(chosen)})
        return splits, data.fingerprint(splits)

    def job(self, point: Point, folder: Path) -> study.Job:
        """The run that a point is, to be made in a folder."""
        splits, fingerprint = self.sample(point.share, point.seed)
        experiment = point.experiment(self.experiment)
        sizes = {split: len(rows) for split, rows in splits.items()}
        config = study.configure(experiment, point.method, point.seed, sizes, fingerprint)
        return study.Job(experiment, point.method, splits, config, folder, None)


def material(experiment: Experiment, source: str) -> Material:
    """The dialogues of a source; for validation at most `VALIDATION` that do not nearly stand in train."""
    splits = data.load_source(source)
    if Path(source).expanduser().is_dir():  # a record names the data, not where they lie on this machine
        experiment = replace(experiment, dataset=Path(source).expanduser().resolve().name)
    unseen = data.unseen(splits["validation"], splits["train"])
    chosen = np.sort(np.random.default_rng(0).permutation(len(unseen))[:VALIDATION])
    return Material(experiment, datasets.DatasetDict({**splits, "validation": unseen.select(chosen)}))


def run(
    group: Group, shared: Material, outputs: Path, *, part: tuple[int, int] = (1, 1), compiled: bool = True
) -> list[str]:
    """Train what is missing of a group, and test what is to be tested.

    Args:
        group: The points.
        shared: What they share.
        outputs: Where the group's CSV file goes, and a folder with a record a test.
        part: Number and count, where several processes each take some of the methods.
        compiled: Whether steps are compiled where the machine can.

    Returns:
        A line for each method that could not be trained.

    Raises:
        RecordError: The group's file is damaged or of another sweep.
    """
    path = outputs / f"{group.name}.csv"
    known = {shared.job(point, Path()).config.key for point in group.points}
    if foreign := sorted(set(sweep_records.read(path)["key"]) - known):
        raise runs.RecordError(
            f"{path} holds {len(foreign)} points of another sweep (other data, settings or model): {foreign[0]}. "
            f"Name another folder with --outputs."
        )
    mine, failed = sweep_points.shared(group.points, *part), []
    for name, several in itertools.groupby(mine, lambda point: point.method.name):
        torch._dynamo.reset()
        try:
            for (share, seed), unit in itertools.groupby(several, lambda point: (point.share, point.seed)):
                folder = outputs / group.name / name / f"share-{share:g}" / f"seed-{seed}" if group.tested else None
                _unit(list(unit), shared, path, folder, compiled)
        except ModelError as error:
            failed.append(f"{group.name}, {name}: {error}")
            print(failed[-1], flush=True)
        except RuntimeError as error:  # compiling and capturing may fail for one method: the others are made
            traceback.print_exc()
            failed.append(f"{group.name}, {name}: {type(error).__name__}, see above. With --plain it may go.")
        clear_device_cache(garbage_collection=True)
    return failed


def _unit(points: list[Point], shared: Material, path: Path, folder: Path | None, compiled: bool) -> None:
    """Points that differ in their learning rate alone; the best of them is tested, where there is a folder for it."""
    with tempfile.TemporaryDirectory() as temporary:
        asked = {(job := shared.job(point, Path(temporary) / f"{number}" / "run")).config.key: (point, job)
                 for number, point in enumerate(points)}  # fmt: skip
        kept = None
        for key, (point, job) in asked.items():
            if key in set(sweep_records.read(path)["key"]):
                continue
            sweep_records.append(path, make(point, job, compiled))
            kept = _better(kept, job, sweep_records.read(path)) if folder else None
            for number in Path(temporary).iterdir():
                if kept is None or number != kept.folder.parent:
                    shutil.rmtree(number)
        if folder is None:
            return
        table = sweep_records.read(path)
        table = table[table["key"].isin(asked) & (table["diverged"] == 0)]
        if table.empty:
            print(f"{points[0].method.name}: training diverged at every rate; there is nothing to test.")
            return
        best = table.loc[sweep_records.score(table).idxmax(), "key"]
        if (folder / "config.json").exists():
            if runs.read_config(folder / "config.json").key != best:
                raise runs.RecordError(f"{folder} is of another point than {path} says is best. Move the folder away.")
            return
        if kept is None or kept.config.key != best:  # of an earlier sitting: its weights are gone
            point, kept = asked[best]
            make(point, kept, compiled)
        _test(kept, folder)


def _better(kept: study.Job | None, job: study.Job, table: pd.DataFrame) -> study.Job | None:
    """Which of two jobs scored higher on validation; none where a sole one diverged."""
    found = sweep_records.score(table).set_axis(table["key"])
    if kept is None:
        return job if found[job.config.key] >= 0 else None
    return job if found[job.config.key] > found[kept.config.key] else kept


def make(point: Point, job: study.Job, compiled: bool) -> dict[str, object]:
    """Train a point and score it on validation: its row. What was trained is left in the job's folder."""
    start = time.perf_counter()
    job.partial.mkdir(parents=True)
    runs.write_json(job.partial / "config.json", asdict(job.config))
    row: dict[str, object] = {
        "key": job.config.key,
        "method": point.method.name,
        **point.lora,
        "learning_rate": point.learning_rate,
        "share": point.share,
        "seed": point.seed,
        "epochs": point.epochs,
        "train_dialogues": len(job.splits["train"]),
        "validation_dialogues": len(job.splits["validation"]),
        "diverged": 0,
    }
    print(
        f"{point.method.name}, rate {point.learning_rate:.3g}, {point.share:g} of train, seed {point.seed}", flush=True
    )
    trainer = study.trainer_for(job, job.splits["validation"], compiled=compiled)
    try:
        row |= _trained(trainer, job)
    except TrainingDiverged as error:
        print(error)
        row["diverged"] = 1
    row["train_tokens"] = sum(map(len, trainer.train_dataset["labels"]))
    row |= {"steps": trainer.state.global_step, "steps_are": "fast" if trainer.fast else "plain"}
    row |= models.count_parameters(trainer.model)
    del trainer
    clear_device_cache(garbage_collection=True)
    row["seconds"] = round(time.perf_counter() - start, 2)
    made = runs.environment()
    return row | {name: made[name] for name in ("device", "commit", "date")}


def _trained(trainer: SummarizationTrainer, job: study.Job) -> dict[str, object]:
    """Train, validate and keep: losses, scores and costs."""
    train_alone(trainer.args)
    trainer.remove_callback(EventFiles)
    trainer.generation = replace(trainer.generation, num_beams=1)
    trainer.train()
    row = {"loss": [log["loss"] for log in trainer.state.log_history if "loss" in log][-1]}
    row["eval_loss"] = trainer.evaluate()["eval_loss"]
    texts = trainer.summaries(list(trainer.validation["dialogue"]))
    scores = rouge.means(texts, list(trainer.validation["summaries"]))
    job.keep(trainer)
    costs = runs.read_json(job.partial / "training.json")
    row |= {name: costs[name] for name in ("train_seconds", "peak_memory_bytes") if name in costs}
    if job.method.peft:
        row["adapter_bytes"] = sum(file.stat().st_size for file in job.weights.glob("*.safetensors"))
    return row | {name: round(scores[name], 6) for name in ("rouge1", "rouge2", "rougeL")}


def _test(job: study.Job, folder: Path) -> None:
    """Summarize and score the test split as `study` does; keep the record without the weights, with each score."""
    made = study.finish(job)
    shutil.rmtree(made.weights)
    scores = report.dialogue_scores(made, job.splits["test"]).round(6)
    runs.write_csv(made.folder / sweep_records.SCORES, scores.reset_index())
    folder.parent.mkdir(parents=True, exist_ok=True)
    copied = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(made.folder, copied)
    copied.rename(folder)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: 1/2 is the first of two.")
    return int(number), int(count)


def main() -> int:
    """Make the groups that are named; 1 where a method could not be trained here or a record cannot be used."""
    parser = argparse.ArgumentParser("sweep", description=__doc__)
    parser.add_argument("groups", nargs="+", metavar="GROUP", help=f"of: {', '.join(sweep_points.GROUPS)}")
    parser.add_argument("--dataset", default=experiments.DIALOGSUM, help="a Hub id or a folder")
    parser.add_argument("--outputs", type=Path, required=True, metavar="DIR", help="where records go")
    parser.add_argument("--share", type=_part, default=(1, 1), metavar="I/N", help="only every N-th method, from the "
                        "I-th on: N processes, each with a card, share a sweep")  # fmt: skip
    parser.add_argument("--plain", action="store_true", help="compile no steps, also where the machine can")
    options = parser.parse_args()
    failed = []
    try:
        for name in options.groups:
            if name not in sweep_points.GROUPS:
                sweep_points.group(name, experiments.experiment(EXPERIMENT), 1, options.outputs)
        shared = material(experiments.experiment(EXPERIMENT), options.dataset)
        for name in options.groups:
            group = sweep_points.group(name, shared.experiment, len(shared.splits["train"]), options.outputs)
            failed += run(group, shared, options.outputs, part=options.share, compiled=not options.plain)
    except KeyboardInterrupt:
        print("Interrupted. The rows so far are kept; the same command goes on.", file=sys.stderr)
        return 130
    except (ConfigurationError, data.DataError, runs.RecordError, ModelError, hardware.NotEnoughMemory) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(["Not made:", *failed] if failed else ["Done."]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
