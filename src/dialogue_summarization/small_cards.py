"""Whether what is planned for a small card holds: the study's runs on a larger card of which only so much may be taken.

`python -m dialogue_summarization.benchmark fits-8` measures with 8 GiB; `fits-8-packed` the steps of module `fast`.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import datasets
import torch
import transformers
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback

from . import hardware, models
from .experiments import EXPERIMENTS, Generation, Settings
from .generation import summarize
from .memory import CONTEXT, GIB
from .training import SummarizationTrainer, are_fast, encode, planned, train_alone, training_arguments

CARDS = (6, 8, 12, 16, 24)  # GiB
BATCH_SIZE = 32
STEPS, SECONDS = 30, 10  # of training, whichever comes first; the peak is in the first steps
PACKED_STEPS = 400  # graphs of new shapes, and gaps between their blocks, come later
LONGEST = 64  # dialogues that are evaluated and summarized
GENERATION = {"smollm2": EXPERIMENTS["smollm2-dialogsum"].generation, "t5-base": Generation()}


@contextmanager
def at_most(gib: float) -> Iterator[None]:
    """Within it the process takes from the card what it could take from one of so many GiB."""
    if not torch.cuda.is_available():
        yield
        return
    total = torch.cuda.get_device_properties(hardware.device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gib * GIB - CONTEXT) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure(
    gib: float,
    splits: datasets.DatasetDict,
    build: Callable[[str, str], models.Model],
    packed: bool = False,
) -> list[dict[str, Any]]:
    """A row a run: what was planned, what it took, or why it failed.

    Args:
        gib: What may be taken, as `at_most`.
        splits: The dialogues.
        build: From a model's name, as in `GENERATION`, and a method's to a fresh model.
        packed: Measure packed and compiled steps.
    """
    found = []
    for name in GENERATION:
        for method in ("full", "lora-balanced"):
            row = {"model": name, "method": method, "packed": packed}
            try:
                with at_most(gib):
                    row |= _run(build(name, method), splits, GENERATION[name], packed)
            except Exception as error:  # of any kind: the other runs are measured all the same
                row["failed"] = reason(error)
            found.append(row)
            clear_device_cache(garbage_collection=True)
    return found


def _run(
    model: models.Model,
    splits: datasets.DatasetDict,
    generation: Generation,
    packed: bool,
) -> dict[str, Any]:
    rows = encode(splits["train"], model.family)
    settings = Settings(1e-4, batch_size=BATCH_SIZE, select_by="loss")
    is_fast = are_fast(settings, model, len(rows), packed)  # where the card has such steps
    plan = planned(settings, model, rows, compiled=packed)
    # Longest first; packed batches are of random dialogues, and hardly differ.
    some = rows if is_fast else _longest(rows, STEPS * BATCH_SIZE)
    found: dict[str, Any] = {"planned": asdict(plan), "longest": max(rows["length"])}
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(settings, folder, model, rows, compiled=packed)
        arguments.max_steps, arguments.logging_steps = PACKED_STEPS if packed else STEPS, 10
        train_alone(arguments)
        trainer = SummarizationTrainer(
            model, settings, compiled=packed, args=arguments, train_dataset=some,
            eval_dataset=_longest(encode(splits["validation"], model.family), LONGEST),
        )  # fmt: skip
        trainer.add_callback(StopAfter(2 * SECONDS if packed else SECONDS))
        _reset()
        trainer.train()
        found |= {"steps": trainer.state.global_step, "train_seconds": round(trainer.train_seconds, 1)}
        found |= {"micro_batch": arguments.per_device_train_batch_size, "fast": trainer.fast}
        found |= {"train_bytes": trainer.peak_memory} | _reserved("train")
        with hardware.PeakMemory() as peak:
            trainer.evaluate()
        found |= {"evaluation_batch": arguments.per_device_eval_batch_size, "evaluate_bytes": peak.bytes}
    # While the optimizer's state is there, as when the best checkpoint is chosen by ROUGE.
    dialogues = sorted(splits["test"]["dialogue"], key=len, reverse=True)[:LONGEST]
    _reset()
    start = time.perf_counter()
    with hardware.PeakMemory() as peak:
        summarize(model, dialogues, replace(generation), progress=False)
    found |= {"generate_seconds": round(time.perf_counter() - start, 1), "generate_bytes": peak.bytes}
    return found | _reserved("generate")


def _longest(rows: datasets.Dataset, count: int) -> datasets.Dataset:
    return rows.sort("length", reverse=True).select(range(min(count, len(rows))))


def _reset() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _reserved(name: str) -> dict[str, int]:
    """What the allocator held, gaps between its blocks and the memory of graphs included."""
    return {f"{name}_reserved_bytes": torch.cuda.max_memory_reserved()} if torch.cuda.is_available() else {}


def reason(error: Exception) -> str:
    """An error's kind and first line, for a record."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class StopAfter(TrainerCallback):
    """Ends training after so many seconds, counted from the end of the second step: until then it may compile."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_end(
        self, args: Any, state: transformers.TrainerState, control: transformers.TrainerControl, **_: Any
    ) -> None:
        now = time.monotonic()
        if state.global_step <= 2:
            self.start = now
        control.should_training_stop |= now - self.start > self.seconds
