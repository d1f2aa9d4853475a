"""The same training by what people would use instead, beside ours: on a CPU, the plain Hugging Face Trainer."""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import mean

import datasets
import pandas as pd
import transformers

from dialogue_summarization import experiments, hardware, models, training

from . import short_training, tables

DIALOGUES, ROUNDS = 48, 2


def measure_on_cpu(record: dict[str, object], splits: datasets.DatasetDict, options: argparse.Namespace) -> None:
    """Samples per second and peak memory of the quickstart's `full` or `lora-balanced`, and of the plain Trainer.

    Both train the packaged model in fp32 on the same dialogues once, as many per step, without validation. Each
    training has a process of its own; they take turns.
    """
    name = str(record["name"]).removeprefix("cpu-")
    rows = splits["train"].select(range(DIALOGUES))
    record |= {"method": name, "dialogues": DIALOGUES, "ours": [], "plain": []}
    for trainer in ("ours", "plain") * ROUNDS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            record[trainer].append(process.submit(_train, trainer, name, rows).result())
    rates = {trainer: mean(one["samples_per_second"] for one in record[trainer]) for trainer in ("ours", "plain")}
    record["ratio"] = round(rates["ours"] / rates["plain"], 2)


def table(records: dict[str, dict]) -> pd.DataFrame:
    """Dialogues per second of both, the means of their turns; `records` are as `tables.load` gives them."""
    rows = {}
    for name in ("full", "lora-balanced"):
        record = records[f"cpu-{name}"]
        rates = {who: mean(one["samples_per_second"] for one in record[who]) for who in ("ours", "plain")}
        row = {"ours": f"{rates['ours']:.2f}", "plain Trainer": f"{rates['plain']:.2f}"}
        rows[tables.label(name)] = row | {"ratio": f"{record['ratio']:.2f}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def _train(trainer: str, method_name: str, rows: datasets.Dataset) -> dict[str, float]:
    make: Callable[..., transformers.Trainer] = our_trainer if trainer == "ours" else plain_trainer
    with tempfile.TemporaryDirectory() as folder:
        made = make(experiments.experiment("quickstart"), experiments.method(method_name), rows, folder)
        with hardware.Meter() as meter:
            made.train()
    rate = round(len(rows) / meter.seconds, 3)
    return {"samples_per_second": rate, "peak_memory_bytes": meter.peak_bytes}


def our_trainer(
    experiment: experiments.Experiment, method: experiments.Method, rows: datasets.Dataset, folder: str
) -> transformers.Trainer:
    """This project's trainer, as `study` uses it."""
    settings, bundle = experiment.settings_for(method), models.load_model(experiment)
    bundle = models.ModelBundle(models.apply_method(bundle.model, method), bundle.tokenizer, bundle.family)
    arguments = training.training_arguments(settings, folder, **short_training.TRAIN_ONLY)
    encoded = training.encode_split(rows, bundle.family)
    return training.trainer_class()(bundle, settings, args=arguments, train_dataset=encoded)


def plain_trainer(
    experiment: experiments.Experiment, method: experiments.Method, rows: datasets.Dataset, folder: str
) -> transformers.Trainer:
    """Hugging Face's Trainer in its standard form: prompt and summary in one row, padded to a batch's longest."""
    path, settings = models.local_snapshot(experiment.model), experiment.settings_for(method)
    tokenizer, family = models.load_tokenizer(path, experiment)
    model = models.apply_method(family.auto_model.from_pretrained(path, dtype="float32"), method)
    encoded = [
        {"input_ids": row["input_ids"] + row["labels"], "labels": [-100] * len(row["input_ids"]) + row["labels"]}
        for row in family.encode_all(rows["dialogue"], [summaries[0] for summaries in rows["summaries"]])
    ]
    arguments = transformers.TrainingArguments(
        folder,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    return transformers.Trainer(model, arguments, collator, datasets.Dataset.from_list(encoded))
