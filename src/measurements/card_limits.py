"""Whether what is planned for a small card holds: the study's runs on a larger one of which only so much may be used.

`python -m measurements fits-8` measures with 8 GiB, `fits-8-packed` packed and compiled steps.
"""

from dataclasses import asdict

import datasets
import torch
from accelerate.utils.memory import clear_device_cache

from dialogue_summarization import experiments, generation, hardware, training
from dialogue_summarization.acceleration.trainer import plan

from . import short_training

CARDS = (6, 8, 12, 16, 24)  # GiB
BATCH_SIZE = 32
STEPS = 8  # of the longest dialogues: the peak is in the first ones
PACKED_STEPS = 200  # graphs of new shapes, and gaps between their blocks, come later
LONGEST = 64  # dialogues that are evaluated and summarized
GENERATION = {"smollm2": experiments.EXPERIMENTS["smollm2-dialogsum"].generation, "t5-base": experiments.Generation()}
NAMES = [f"fits-{gib}{packed}" for packed in ("", "-packed") for gib in CARDS]
RUNS = [(model, method) for model in GENERATION for method in ("full", "lora-balanced")]


def measure(record: dict[str, object], splits: datasets.DatasetDict, options: object = None) -> None:
    """For each of `RUNS` what was planned, what it took, or why it failed; the record's name is one of `NAMES`."""
    gib, _, packed = record["name"].removeprefix("fits-").partition("-")
    record |= {"gib": float(gib), "runs": []}
    for model, method in RUNS:
        row = {"model": model, "method": method, "packed": bool(packed)}
        record["runs"].append(row)
        try:
            with short_training.memory_limit(float(gib)):
                row |= _run(splits, **row)
        except Exception as error:  # of any kind: the other runs are measured all the same
            row["failed"] = short_training.first_line(error)
        clear_device_cache(garbage_collection=True)


def _run(splits: datasets.DatasetDict, model: str, method: str, packed: bool) -> dict[str, object]:
    bundle = short_training.build(model, method)
    rows, validation = (training.encode_split(splits[split], bundle.family) for split in ("train", "validation"))
    settings = experiments.Settings(1e-4, batch_size=BATCH_SIZE, select_by="loss")
    planned = plan(settings, bundle, rows, training.training_arguments(settings, "nowhere"), packed)
    longest = rows if packed else _longest(rows, STEPS * BATCH_SIZE)  # packed batches hardly differ
    steps = {"max_steps": PACKED_STEPS if packed else STEPS, "logging_steps": 10}
    options = {"eval_dataset": _longest(validation, LONGEST), "compiled": packed, "batch_plan": planned}
    clear_device_cache()
    trainer, row = short_training.train(bundle, settings, longest, steps, **options)
    row |= {"planned": asdict(planned), "longest": max(rows["length"]), "train_bytes": trainer.peak_memory}
    row |= _reserved("train")
    with hardware.Meter() as meter:
        trainer.evaluate()
    row |= {"evaluation_batch": trainer.args.per_device_eval_batch_size, "evaluate_bytes": meter.peak_bytes}
    # While the optimizer's state is there, as when the best checkpoint is chosen by ROUGE.
    dialogues = sorted(splits["test"]["dialogue"], key=len, reverse=True)[:LONGEST]
    clear_device_cache()
    with hardware.Meter() as meter:
        generation.summarize(bundle, dialogues, GENERATION[model], progress=False)
    row |= {"generate_seconds": round(meter.seconds, 1), "generate_bytes": meter.peak_bytes}
    return row | _reserved("generate")


def _longest(rows: datasets.Dataset, count: int) -> datasets.Dataset:
    return rows.sort("length", reverse=True).select(range(min(count, len(rows))))


def _reserved(name: str) -> dict[str, int]:
    """What the allocator held, gaps between its blocks and the memory of graphs included."""
    return {f"{name}_reserved_bytes": torch.cuda.max_memory_reserved()} if torch.cuda.is_available() else {}
