"""One run of the study: load, train, summarize the test split, score, record. Notebooks and the command line end here.

`run` does all of it. `prepare`, `train` and `finish` are its parts, for a notebook that trains in the open.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import pandas as pd
import torch
import transformers

from . import data, hardware, models, report, runs
from .disk import lock_run, unlock
from .errors import ConfigurationError, ModelError
from .experiments import Experiment, Method
from .generation import summarize
from .prepared import PreparedRun
from .rouge import score_dialogues
from .settings import require_seed
from .training import SummarizationTrainer, encode_split, trainer_class, training_arguments

MOST_SECONDS = 900  # of a run on a CPU; what is estimated to take longer needs `--yes`


def run(
    experiment: Experiment, method: Method, seed: int = 0, *, outputs: str | Path = runs.OUTPUTS, force: bool = False
) -> runs.Run:
    """A finished run: loaded where it was made before, resumed where it was interrupted, otherwise made."""
    prepared = prepare(experiment, method, seed, outputs=outputs, force=force)
    if prepared.needs_training:
        train(prepared)
    return finish(prepared)


def prepare(
    experiment: Experiment, method: Method, seed: int = 0, *, outputs: str | Path = runs.OUTPUTS, force: bool = False
) -> PreparedRun:
    """Load the data and see what there is of a run: its finished record, or files of an interrupted one.

    A run is done when its key matches and its weights are there. What a run with another key left in the same place is
    kept under a name with that key, and damaged files are set aside. `force` makes a finished run again; its record is
    replaced only when the new one is complete. A run to be made is locked by this process until it is finished, or the
    process ends.

    Raises:
        DataError: The data cannot be used.
        RecordError: The run's record is damaged.
        UserError: Another process is making the run, or `outputs` cannot be written.
    """
    prepared, name = plan_run(experiment, method, seed, outputs), f"{experiment.name}, {method.name}"
    record, lock = prepared.finished_record(), None
    if force or not record:
        require_time(experiment, method, prepared.config.dialogues)
        lock = lock_run(prepared.tmp_dir)
        prepared.restore_kept_files()
        record = prepared.finished_record()  # perhaps made by another process meanwhile
    if record and not force:
        unlock(lock)
        print(f"{name}: loaded from the record of {record.date}; FORCE = True (--force) runs it again.")
        return replace(prepared, record=record)
    if not force and (prepared.folder / "metrics.json").exists():
        print(f"{name}: the record there is of other settings, data or model, or has no weights: the run is made anew.")
    prepared.recover()
    if prepared.checkpoint:
        print(f"{name}: going on from {Path(prepared.checkpoint).name}.")
    return replace(prepared, lock=lock)


def require_time(experiment: Experiment, method: Method, dialogues: Mapping[str, int]) -> None:
    """Ask for a yes before hours on a CPU: raise `ConfigurationError` unless the variable STUDY_YES is set (`--yes`).

    Scaled from the quickstart on two threads: SmolLM2-135M learns a dialogue in 1.3 s, and summarizes one in about 1 s.
    """
    if hardware.device().type != "cpu" or os.environ.get("STUDY_YES"):
        return
    weights = Path(models.local_snapshot(experiment.model)).glob("*.safetensors")
    scale = sum(path.stat().st_size for path in weights) / 538e6 * 2 / torch.get_num_threads()
    settings, beams = experiment.settings_for(method), experiment.generation_for(method).num_beams
    seconds = scale * (1 + beams) / 2 * dialogues["test"]
    seconds += scale * 1.3 * settings.epochs * dialogues["train"] if settings else 0
    if seconds > MOST_SECONDS:
        hours = f"{seconds / 3600:.0f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
        start = 'To start it: --yes, or in a notebook os.environ["STUDY_YES"] = "1". Shorter: --limit 64 (LIMIT = 64).'
        raise ConfigurationError(f"{experiment.name}, {method.name}: about {hours} on this CPU. {start}")


def plan_run(experiment: Experiment, method: Method, seed: int, outputs: str | Path) -> PreparedRun:
    """The run that is asked for, with its data, whatever there is of it."""
    splits, method = data.load(experiment), experiment.adapted(method)
    folder = Path(outputs) / experiment.name / method.name / f"seed-{seed}"
    return PreparedRun(experiment, method, splits, make_config(experiment, method, seed, splits), folder)


def make_config(
    experiment: Experiment, method: Method, seed: int, splits: Mapping[str, datasets.Dataset]
) -> runs.RunConfig:
    """What a run is asked for, on these dialogues. Raises `ConfigurationError` for a seed that cannot be used."""
    require_seed(seed)
    settings = experiment.settings_for(method)
    peft = {key: list(value) if isinstance(value, tuple) else value for key, value in (method.peft or {}).items()}
    return runs.RunConfig(
        experiment=experiment.name,
        method=method.name,
        model=experiment.model,
        dataset=experiment.dataset,
        seed=seed,
        prompt=experiment.prompt,
        max_prompt_tokens=experiment.max_prompt_tokens,
        generation=asdict(experiment.generation_for(method)),
        settings=asdict(settings) if settings else None,
        peft=peft or None,
        options=method.options,
        dialogues={split: len(rows) for split, rows in splits.items()},
        data_fingerprint=data.fingerprint(splits),
        split_fingerprints={split: data.fingerprint({split: rows}) for split, rows in splits.items()},
        model_fingerprint=models.fingerprint(experiment.model),
    )


def train(prepared: PreparedRun) -> None:
    """Train a run's model, from its last checkpoint where there is one, and save it."""
    trainer = make_trainer(prepared, data.drop_near_duplicates(prepared.splits["validation"], prepared.splits["train"]))
    trainer.train(resume_from_checkpoint=prepared.checkpoint)
    prepared.save(trainer)


def make_trainer(
    prepared: PreparedRun,
    validation: datasets.Dataset,
    overrides: Mapping[str, object] | None = None,
    **options: object,
) -> SummarizationTrainer:
    """The trainer of a run's fresh model; `overrides` are further `TrainingArguments`, `options` its class's."""
    seed, settings = prepared.config.seed, prepared.settings
    bundle = models.load_model(prepared.experiment, quantization=prepared.method.quantization)
    overrides = {"fp16": hardware.precision_for(bundle.model) == "fp16"} | dict(overrides or {})
    transformers.set_seed(seed)  # what an adapter starts from, and dropout
    bundle = replace(bundle, model=models.apply_method(bundle.model, prepared.method))
    return trainer_class()(
        bundle,
        settings,
        prepared.generation,
        validation,
        prepared.method,
        args=training_arguments(settings, prepared.checkpoints, seed=seed, **overrides),
        train_dataset=encode_split(prepared.splits["train"], bundle.family),
        eval_dataset=encode_split(validation, bundle.family, references=1),
        **options,
    )


def finish(prepared: PreparedRun) -> runs.Run:
    """Summarize the test split with the run's model as it was saved, score it once, and write the record."""
    if prepared.record:
        return prepared.record
    bundle = load_trained(prepared)
    with hardware.Meter() as meter:
        texts = summarize(bundle, list(prepared.splits["test"]["dialogue"]), prepared.generation)
    return record(prepared, bundle, texts, meter, runs.environment())


def load_trained(prepared: PreparedRun) -> models.ModelBundle:
    """The model of a run as it was saved, on the device."""
    quantization = prepared.method.quantization
    return models.load_model(prepared.experiment, prepared.weights, quantization=quantization, device=hardware.device())


def record(
    prepared: PreparedRun,
    bundle: models.ModelBundle,
    texts: list[str],
    meter: hardware.Meter,
    environment: dict[str, object],
) -> runs.Run:
    """Score the test summaries, whose generation `meter` measured, and write the run's record: whole, or not at all."""
    test, tmp_dir, method = prepared.splits["test"], prepared.tmp_dir, prepared.method
    scores = score_dialogues(texts, test["summaries"]).set_index(pd.Index(test["id"], name="id"))
    metrics = {name: round(float(value), 6) for name, value in scores.mean().items()}
    metrics |= {"dialogues": len(test), "references": sum(map(len, test["summaries"]))} | meter.costs("generate")
    metrics["truncated_dialogues"] = sum(row["truncated"] for row in bundle.family.encode_all(list(test["dialogue"])))
    log = pd.DataFrame()
    if method.is_trained:  # perhaps in an earlier sitting
        metrics |= runs.read_json(tmp_dir / "training.json")
        log = pd.read_csv(tmp_dir / "training_log.csv")
    else:
        metrics |= models.count_parameters(bundle.model) | {"trainable_parameters": 0}
    if method.peft:
        metrics["adapter_bytes"] = sum(path.stat().st_size for path in prepared.weights.glob("*.safetensors"))
    scores = scores.round(6)
    left_out = {split: rows.info.description for split, rows in prepared.splits.items() if rows.info.description}
    known = {"signature": report.signature(test), "precision": hardware.precision_for(bundle.model)}
    environment = environment | known | ({"data": left_out} if left_out else {})
    runs.write_results(tmp_dir, texts, scores, metrics, environment)
    prepared.move_into_place()
    unlock(prepared.lock)
    predictions = pd.DataFrame({"id": test["id"], "prediction": texts})
    return runs.Run(prepared.folder, prepared.config, environment, metrics, predictions, scores, log)


def load_run(run: runs.Run) -> models.ModelBundle:
    """The model of a finished run, on the device. Raises `ConfigurationError` where its weights are not there."""
    if run.weights is None and run.config.settings is not None:
        raise ConfigurationError(f"{run.folder} has no weights: `study {run.config.experiment}` makes them.")
    require_same_base(run)
    quantization = run.config.options.get("quantization")
    return models.load_model(run.experiment, run.weights, quantization=quantization, device=hardware.device())


def require_same_base(run: runs.Run) -> None:
    """Raise `ModelError` where a run's model takes a base whose files are no longer those that it was made with."""
    uses_base = run.config.peft or not run.weights
    if uses_base and models.fingerprint(run.config.model) != run.config.model_fingerprint:
        remedy = "Put its files back, or train anew."
        raise ModelError(f"{run.config.model} has changed since {run.folder} was made with it. {remedy}")
