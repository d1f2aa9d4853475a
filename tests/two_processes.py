"""What each of two CPU processes does that `distributed/test_two_processes.py` starts, and how one process does it."""

import itertools
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import helpers
import pytest
import torch
from accelerate.state import DistributedType, PartialState
from accelerate.utils import gather_object
from helpers import tiny_experiment
from transformers import TrainingArguments

from dialogue_summarization import callbacks, experiments, study, training
from dialogue_summarization.acceleration import trainer as accelerated
from dialogue_summarization.commands import notebooks
from dialogue_summarization.distributed import processes
from dialogue_summarization.distributed import study as distributed_study
from dialogue_summarization.distributed import trainer as distributed
from measurements import __main__ as measurements
from measurements import short_training, throughput

KILLED_AT = 5  # the step of 6 that one process does not survive
STOPPED_AT = 8  # the step of 10, in the second of two epochs, at which a run is interrupted that then resumes
METHODS = ("full", "lora-balanced")


def experiment(model, dataset, **changes):
    """Two epochs, the better by ROUGE; the data make no whole number of batches."""
    tiny, changes = tiny_experiment(model, dataset), {"select_by": "rouge2"} | changes
    return replace(tiny, settings={name: replace(each, **changes) for name, each in tiny.settings.items()})


def study_experiment(model, dataset):
    return experiments.experiment("smollm2-dialogsum", model=str(model), dataset=str(dataset))


@contextmanager
def as_if_compiled():
    """As on a GPU, with packed batches and without DDP.

    Gradients twice as large make other weights here: they are not clipped, and AdamW's epsilon is large.
    """

    def trainer_class():
        return distributed.DistributedTrainer if PartialState().num_processes > 1 else accelerated.AcceleratedTrainer

    with helpers.as_if_compiled(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "trainer_class", trainer_class)
        scale = {"max_grad_norm": 1e6, "adam_epsilon": 0.1}
        patch.setattr(training, "TrainingArguments", lambda **given: TrainingArguments(**given | scale))
        yield


@contextmanager
def as_if_too_large():
    """As on GPUs that cannot hold the training: accelerate shards on none but GPUs, so it is told that these are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "must_shard", lambda model: True)
        patch.setattr(PartialState, "_prepare_backend", lambda *_: ("gloo", DistributedType.MULTI_GPU))
        patch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
        patch.setattr(training, "TrainingArguments", lambda **given: TrainingArguments(**given | {"use_cpu": False}))
        yield


def without_dropout(model):
    """Of which each process draws its own: losses would differ by it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def measure(llama, dataset, folder):
    """Measure trainings of tiny models: SmolLM2's place is taken by a Llama, FLAN-T5-xl's by a tiny shape of its own.

    What may be allocated of a GPU is set aside, where there is none, and which is then too small for that shape.
    """
    configuration, t5 = throughput.Configuration, short_training.t5
    configurations = {
        "smollm2-full-plain": configuration("smollm2", batch_size=4, steps=12, warm_up=2),
        "smollm2-lora": configuration("smollm2", "lora-balanced", batch_size=4, steps=6, warm_up=2),
        "t5-xl-full": configuration("t5-xl", batch_size=4, compiled=False, steps=6, warm_up=2, gib=40),
    }
    line = ["--dataset", str(dataset), "--outputs", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(experiments.EXPERIMENTS, "smollm2-dialogsum", tiny_experiment(llama, dataset))
        patch.setitem(short_training.T5_SHAPES, "t5-xl", (32, 64, 2, 4))
        patch.setattr(short_training, "t5", lambda shape: without_dropout(t5(shape)))
        patch.setattr(throughput, "CONFIGURATIONS", configurations)
        patch.setattr(throughput, "LOGGING_STEPS", 1)
        patch.setattr(processes, "leave", PartialState().wait_for_everyone)
        assert measurements.main(["smollm2-full-plain", "smollm2-lora", "generate-beams1", *line]) == 0
        if PartialState().num_processes == 1:
            assert measurements.main(["t5-xl-full", *line]) == 0
            assert measurements.main(["smollm2-full-plain", "--batch-size", "2", *line]) == 0
            return
        with as_if_too_large():
            assert measurements.main(["t5-xl-full", *line]) == 0


@contextmanager
def at_step(number, happens):
    usual, calls = training.SummarizationTrainer.training_step, itertools.count(1)

    def training_step(*args, **kwargs):
        if next(calls) == number:
            happens()
        return usual(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.SummarizationTrainer, "training_step", training_step)
        yield


@contextmanager
def in_one_order():
    """All processes call the same collectives in the same order, also where one comes late to each evaluation.

    In another order NCCL waits for ever; gloo may take one collective for the other.
    """
    called, rank, evaluation_loop = [], torch.distributed.get_rank(), training.SummarizationTrainer.evaluation_loop

    def recorded(name):
        usual = getattr(torch.distributed, name)

        def call(*args, **kwargs):
            called.append(name)
            return usual(*args, **kwargs)

        return call

    def late(*args, **kwargs):
        time.sleep(0.3 * rank)
        output = evaluation_loop(*args, **kwargs)
        time.sleep(0.3 * rank)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.SummarizationTrainer, "evaluation_loop", late)
        for name in ("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier", "broadcast"):
            patch.setattr(torch.distributed, name, recorded(name))
        yield
    first, second = gather_object([called])
    assert first == second and {"all_gather", "all_gather_object", "barrier"} <= set(first)


def interrupt():
    raise KeyboardInterrupt


def be_killed():
    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def main(llama, t5, dataset, folder):
    # Workers of data loaders start as in any process: spawned ones would import all packages anew at each epoch.
    assert multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0]
    measure(llama, dataset, folder / "measured")
    callbacks.SECONDS_BETWEEN_CHECKPOINTS = 0
    full, mean = experiments.method("full"), {"averaged_epochs": 2}
    for name, model, pretence, changes in (
        ("compiled", llama, as_if_compiled, {}),
        ("sharded", t5, as_if_too_large, {}),
        ("sharded-mean", t5, as_if_too_large, mean),
    ):
        run = partial(distributed_study.run, experiment(model, dataset, **changes), full, outputs=folder / name)
        with pretence():
            with pytest.raises(KeyboardInterrupt), at_step(STOPPED_AT, interrupt):
                run()
            with in_one_order():
                run()
    with pytest.raises(KeyboardInterrupt), at_step(STOPPED_AT, interrupt):
        distributed_study.run(experiment(llama, dataset, **mean), full, outputs=folder / "other-number")
    methods = [experiments.method(name) for name in METHODS]
    with at_step(KILLED_AT, be_killed):
        notebooks.make_runs(study_experiment(llama, dataset), methods, 0, folder / "two", False)
