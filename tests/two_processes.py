"""What each of two CPU processes does that `test_parallel.py` starts."""

import itertools
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from conftest import tiny_experiment

from dialogue_summarization import (
    benchmark,
    cli,
    experiments,
    fast,
    hardware,
    processes,
    shapes,
    study,
    throughput,
    trainer_parts,
    training,
)

KILLED_AT = 5  # the step of 6 that one process does not survive
STOPPED_AT = 8  # the step of 10, in the second of two epochs, at which a run is interrupted that then goes on
LINE = ("smollm2-dialogsum", "--runs", "full,lora-balanced", "--gpus", "2")


def experiment(model, dataset):
    """Two epochs, the better by ROUGE; the data make no whole number of batches."""
    tiny = tiny_experiment(model, dataset)
    return replace(tiny, settings={name: replace(each, select_by="rouge2") for name, each in tiny.settings.items()})


@contextmanager
def as_if_compiled():
    """As on a card, with packed batches and without DDP, but for compilation and graphs, which take one."""

    def prepare(network, attention):
        if attention:
            fast.set_attention(network, attention)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "are_fast", lambda *_: True)
        patch.setattr(fast, "prepare", prepare)
        patch.setattr(fast, "StepGraphs", lambda step, network: step)
        yield


@contextmanager
def as_if_too_large():
    """As on cards that cannot hold the training: accelerate shards on none but GPUs, so it is told that these are."""
    from accelerate.state import DistributedType, PartialState

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "holds_training", lambda network: False)
        patch.setattr(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU))
        patch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
        usual = training.TrainingArguments
        patch.setattr(training, "TrainingArguments", lambda **some: usual(**(some | {"use_cpu": False})))
        yield


def without_dropout(network):
    """Of which each process draws its own: losses would differ by it."""
    shapes.without_dropout(network)
    return network


def measure(llama, dataset, folder):
    """The benchmark on tiny models: SmolLM2's place is taken by a Llama, FLAN-T5-xl's by a tiny shape of its own.

    What may be taken of a card is set aside, where there is none, and which is then too small for that shape.
    """
    entries = (
        throughput.Entry("smollm2-full-plain", "smollm2", batch_size=4, steps=12, warm_up=2),
        throughput.Entry("smollm2-lora", "smollm2", "lora-balanced", batch_size=4, steps=6, warm_up=2),
        throughput.Entry("t5-xl-full", "t5-xl", batch_size=4, fast=False, steps=6, warm_up=2, gib=40),
    )
    line = ["--dataset", str(dataset), "--outputs", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(experiments.EXPERIMENTS, "smollm2-dialogsum", tiny_experiment(llama, dataset))
        patch.setitem(throughput.T5_SHAPES, "t5-xl", (32, 64, 2, 4))
        usual = throughput.t5
        patch.setattr(throughput, "t5", lambda shape: without_dropout(usual(shape)))
        patch.setattr(throughput, "ENTRIES", {entry.name: entry for entry in entries})
        patch.setattr(processes, "leave", processes.wait)
        benchmark.main(["smollm2-full-plain", "smollm2-lora", "generate-beams1", *line])
        if processes.count() == 1:
            benchmark.main(["t5-xl-full", *line])
            benchmark.main(["smollm2-full-plain", "--batch-size", "2", *line])
            return
        with as_if_too_large():
            benchmark.main(["t5-xl-full", *line])


@contextmanager
def at_step(number, happens):
    usual, calls = training.SummarizationTrainer.training_step, itertools.count(1)

    def training_step(*some, **more):
        if next(calls) == number:
            happens()
        return usual(*some, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.SummarizationTrainer, "training_step", training_step)
        yield


def interrupt():
    raise KeyboardInterrupt


def be_killed():
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def main(llama, t5, dataset, out):
    processes.join()
    measure(llama, dataset, f"{out}/measured")
    trainer_parts.SECONDS_BETWEEN_CHECKPOINTS = 0
    for model, pretence, folder in ((llama, as_if_compiled, "compiled"), (t5, as_if_too_large, "sharded")):
        run = partial(study.run, experiment(model, dataset), experiments.method("full"), outputs=f"{out}/{folder}")
        with pretence():
            with pytest.raises(KeyboardInterrupt), at_step(STOPPED_AT, interrupt):
                run()
            run()
    with at_step(KILLED_AT, be_killed):
        cli.main([*LINE, "--model", llama, "--dataset", dataset, "--outputs", f"{out}/two"])


if __name__ == "__main__":
    main(*sys.argv[1:])
