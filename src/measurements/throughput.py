"""How fast a model trains in steady state, how fast it generates, and what its weights take."""

import argparse
import contextlib
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

import datasets
import torch
from accelerate import PartialState

from dialogue_summarization import errors, experiments, generation, hardware, models, training
from dialogue_summarization.acceleration.memory import BatchPlan
from dialogue_summarization.distributed import processes
from dialogue_summarization.methods import quantization

from . import short_training

LOGGING_STEPS = 5
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the vendor's data sheets
BASES = ("zero-shot", "zero-shot-nf4", "zero-shot-int8", "zero-shot-int8-cpu")  # the model in fp32, 4 and 8 bits


@dataclass(frozen=True)
class Configuration:
    """What is trained to be measured: a model as `short_training.build` takes it, with so many dialogues per step.

    The clock starts after the steps of `warm_up`: compilation, and graphs for each shape. `gib` is what may be
    allocated of each GPU.
    """

    model: str
    method: str = "full"
    batch_size: int = 64
    compiled: bool = True
    steps: int = 120
    warm_up: int = 80
    gib: float | None = None


CONFIGURATIONS = {
    "t5-base-full-plain": Configuration("t5-base", compiled=False, steps=30, warm_up=10),
    "t5-base-full": Configuration("t5-base", steps=280, warm_up=200),
    "t5-base-full-256": Configuration("t5-base", batch_size=256, steps=200, warm_up=150),
    "t5-base-lora-plain": Configuration("t5-base", "lora-balanced", compiled=False, steps=30, warm_up=10),
    "t5-base-lora": Configuration("t5-base", "lora-balanced", steps=280, warm_up=200),
    "smollm2-full-plain": Configuration("smollm2", batch_size=32, compiled=False, steps=60, warm_up=20),
    "smollm2-full": Configuration("smollm2", batch_size=32),
    "smollm2-lora-plain": Configuration("smollm2", "lora-balanced", 32, compiled=False, steps=60, warm_up=20),
    "smollm2-lora": Configuration("smollm2", "lora-balanced", 32),
    # Weights, gradients and AdamW's moments are 2.85 B x 16 bytes = 42.5 GiB: two GPUs hold them, one does not.
    "t5-xl-full": Configuration("t5-xl", batch_size=8, compiled=False, steps=20, warm_up=5, gib=42),
}


def measure(record: dict[str, object], splits: datasets.DatasetDict, options: argparse.Namespace) -> None:
    """Samples per second in steady state, peak memory, MFU and the losses, of one of `CONFIGURATIONS`.

    With several processes also the time that exchanging the gradients takes by itself.
    """
    chosen, gpus = CONFIGURATIONS[record["name"]], PartialState().num_processes
    if options.batch_size:
        chosen = replace(chosen, batch_size=options.batch_size)
        record["name"] += f"-batch{options.batch_size}"
    record |= {"model": chosen.model, "method": chosen.method, "gpus": gpus, "batch_size": chosen.batch_size}
    record |= {"gib": chosen.gib} if chosen.gib else {}
    settings = experiments.Settings(1e-4, batch_size=chosen.batch_size, select_by="loss")
    # Held whole: what does not fit is seen, and not planned around.
    plan = BatchPlan(chosen.batch_size // gpus, 1, checkpointing=False, bytes=0) if chosen.gib is None else None
    steps = {"max_steps": chosen.steps, "logging_steps": LOGGING_STEPS}
    with short_training.memory_limit(chosen.gib):
        bundle = short_training.build(chosen.model, chosen.method)
        rows = training.encode_split(splits["train"], bundle.family)
        how = {"compiled": chosen.compiled, "batch_plan": plan}
        trainer, trained = short_training.train(bundle, settings, rows, steps, **how)
    seconds = {log["step"]: log["seconds"] for log in trainer.state.log_history if "loss" in log}
    per_step = (seconds[chosen.steps] - seconds[chosen.warm_up]) / (chosen.steps - chosen.warm_up)
    record |= trained | {"sharded": trainer.is_fsdp_enabled, "warm_up_seconds": round(seconds[chosen.warm_up], 1)}
    rate = chosen.batch_size / per_step
    record |= {"samples_per_second": round(rate, 1), "step_milliseconds": round(1000 * per_step, 2)}
    if chosen.method == "full" and (peak := peak_flops(hardware.describe()["device"])):
        record["mfu"] = round(rate * flops_per_sample(bundle, rows) / (peak * gpus), 4)
    if gpus > 1 and not trainer.is_fsdp_enabled:
        trainer.model.zero_grad()
        gradients = torch.zeros(record["trainable_parameters"], device=hardware.device())
        for number in range(3 + 20):  # the first warm up
            if number == 3:
                start = short_training.synchronized_time()
            torch.distributed.all_reduce(gradients)
        record["all_reduce_milliseconds"] = round(1000 * (short_training.synchronized_time() - start) / 20, 3)


def peak_flops(device: str) -> float | None:
    """Operations per second that a GPU of that name is sold with, where it is in `PEAK_FLOPS`."""
    return next((rate for name, rate in PEAK_FLOPS.items() if name in device), None)


def flops_per_sample(bundle: models.ModelBundle, rows: datasets.Dataset) -> float:
    """Operations to train on a pair of mean length, without padding: 6 per parameter and token (Kaplan et al. 2020)."""
    prompt, summary = (mean(map(len, rows[name])) for name in ("input_ids", "labels"))
    model, head = bundle.model, bundle.model.get_output_embeddings().weight.numel()
    if not model.config.is_encoder_decoder:
        return 6 * ((model.num_parameters() - head) * (prompt + summary) + head * summary)
    encoder, decoder = (sum(map(torch.numel, side.block.parameters())) for side in (model.encoder, model.decoder))
    return 6 * (encoder * prompt + (decoder + head) * summary)


def measure_generation(record: dict[str, object], splits: datasets.DatasetDict, options: object = None) -> None:
    """Seconds to summarize the test split with the packaged model, greedily or with beams."""
    beams, dialogues = int(record["name"].removeprefix("generate-beams")), list(splits["test"]["dialogue"])
    bundle, gpus = short_training.build("smollm2", "zero-shot"), PartialState().num_processes
    bundle.model.to(hardware.device())
    generate = partial(generation.summarize, bundle, generation=experiments.Generation(num_beams=beams), progress=False)
    for some in (dialogues[: 8 * gpus], dialogues):  # the first warm up
        with hardware.Meter() as meter:
            processes.split_between_processes(generate, some)
    record |= {"gpus": gpus, "dialogues": len(dialogues), "num_beams": beams, "seconds": round(meter.seconds, 2)}


def measure_weights(record: dict[str, object], splits: object = None, options: object = None) -> None:
    """Bytes that the packaged model's weights take in fp32, and in each quantized form that this machine can hold."""
    record["bytes"], experiment = {}, experiments.experiment("smollm2-dialogsum")
    for name in BASES:
        with contextlib.suppress(errors.ModelError):
            bundle = models.load_model(experiment, quantization=experiments.method(name).quantization)
            record["bytes"][name] = quantization.weight_bytes(bundle.model)
