"""The same training by what people would use instead, beside ours: on a CPU, the plain Hugging Face Trainer."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import mean

import datasets
import pandas as pd
import transformers

from dialogue_summarization import experiments, hardware, models, training

from . import short_training, tables

DIALOGUES, ROUNDS = 48, 2
EXPERIMENT = experiments.EXPERIMENTS["quickstart"]


def measure_on_cpu(record: dict[str, object], splits: datasets.DatasetDict, options: object = None) -> None:
    """Samples per second and peak memory of the quickstart's `full` or `lora-balanced`, and of the plain Trainer.

    Both train the packaged model in fp32 on the same dialogues once, as many per step, without validation. Each
    training has a process of its own; they take turns.
    """
    method = experiments.method(str(record["name"]).removeprefix("cpu-"))
    rows = splits["train"].select(range(DIALOGUES))
    record |= {"method": method.name, "dialogues": DIALOGUES} | {trainer: [] for trainer in TRAINERS}
    for trainer in [*TRAINERS] * ROUNDS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            record[trainer].append(process.submit(_train, trainer, method, rows).result())
    rates = rates_of(record)
    record["ratio"] = round(rates["ours"] / rates["plain"], 2)


def rates_of(record: dict[str, object]) -> dict[str, float]:
    """Dialogues per second of both, the means of their turns."""
    return {trainer: mean(turn["samples_per_second"] for turn in record[trainer]) for trainer in TRAINERS}


def table(records: dict[str, dict]) -> pd.DataFrame:
    """Dialogues per second of both, and how many times ours; `records` are as `tables.load` gives them."""
    rows = {}
    for name in ("full", "lora-balanced"):
        record = records[f"cpu-{name}"]
        rows[tables.label(name)] = rates_of(record) | {"ratio": record["ratio"]}
    shown = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    return shown.rename(columns={"plain": "plain Trainer"}).map("{:.2f}".format)


def _train(trainer: str, method: experiments.Method, rows: datasets.Dataset) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        made = TRAINERS[trainer](method, rows, folder)
        with hardware.Meter() as meter:
            made.train()
    return {"samples_per_second": round(len(rows) / meter.seconds, 3), "peak_memory_bytes": meter.peak_bytes}


def our_trainer(method: experiments.Method, rows: datasets.Dataset, folder: str) -> transformers.Trainer:
    """This project's trainer, as `study` uses it."""
    settings, bundle = EXPERIMENT.settings_for(method), models.load_model(EXPERIMENT)
    bundle = replace(bundle, model=models.apply_method(bundle.model, method))
    arguments = training.training_arguments(settings, folder, **short_training.TRAIN_ONLY)
    encoded = training.encode_split(rows, bundle.family)
    return training.trainer_class()(bundle, settings, args=arguments, train_dataset=encoded)


def plain_trainer(method: experiments.Method, rows: datasets.Dataset, folder: str) -> transformers.Trainer:
    """Hugging Face's Trainer in its standard form: prompt and summary in one row, padded to a batch's longest."""
    path, settings = models.local_snapshot(EXPERIMENT.model), EXPERIMENT.settings_for(method)
    tokenizer, family = models.load_tokenizer(path, EXPERIMENT)
    model = models.apply_method(family.auto_model.from_pretrained(path, dtype="float32"), method)
    encoded = [
        {"input_ids": row["input_ids"] + row["labels"], "labels": [-100] * len(row["input_ids"]) + row["labels"]}
        for row in training.encode_split(rows, family)
    ]
    chosen = {"num_train_epochs": settings.epochs, "per_device_train_batch_size": settings.batch_size}
    chosen |= {"learning_rate": settings.learning_rate, "use_cpu": True, "save_strategy": "no"}
    arguments = transformers.TrainingArguments(folder, **chosen, report_to="none", disable_tqdm=True)
    collator = transformers.DataCollatorForSeq2Seq(tokenizer)
    return transformers.Trainer(model, arguments, collator, datasets.Dataset.from_list(encoded))


TRAINERS = {"ours": our_trainer, "plain": plain_trainer}
