"""How fast a model trains in steady state: what is measured, how, and the table of it.

Every entry trains through `SummarizationTrainer`, plain or fast, on the pairs of a data set. FLAN-T5's shapes have
random weights, which takes the same time as trained ones.
"""

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import pandas as pd
import torch
import transformers
from transformers import TrainerCallback, TrainingArguments

from . import experiments, hardware, models, processes, scaling, shapes, small_cards
from .base_models import title
from .experiments import Settings
from .parallel import exchange_seconds, is_sharded, trainer_class
from .tokenization import T5, EncoderDecoder
from .training import CHECKPOINTING, encode, train_alone, training_arguments

T5_SHAPES = {  # d_model, d_ff, layers, heads: huggingface.co/google/flan-t5-{small,base,large,xl}, config.json
    "t5-small": (512, 1024, 8, 6),
    "t5-base": (768, 2048, 12, 12),
    "t5-large": (1024, 2816, 24, 16),
    "t5-xl": (2048, 5120, 24, 32),
}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the vendor's data sheets


@dataclass(frozen=True)
class Entry:
    """A configuration to measure."""

    name: str
    model: str  # a key of T5_SHAPES, or smollm2
    method: str = "full"
    batch_size: int = 64
    fast: bool = True
    steps: int = 120
    warm_up: int = 80  # steps before the clock starts: compilation, and graphs for each shape
    gib: float | None = None  # what may be taken of each card


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("t5-base-full-plain", "t5-base", fast=False, steps=30, warm_up=10),
        Entry("t5-base-full", "t5-base", steps=280, warm_up=200),
        Entry("t5-base-full-256", "t5-base", batch_size=256, steps=200, warm_up=150),
        Entry("t5-base-lora-plain", "t5-base", method="lora-balanced", fast=False, steps=30, warm_up=10),
        Entry("t5-base-lora", "t5-base", method="lora-balanced", steps=280, warm_up=200),
        Entry("smollm2-full-plain", "smollm2", batch_size=32, fast=False, steps=60, warm_up=20),
        Entry("smollm2-full", "smollm2", batch_size=32),
        Entry("smollm2-lora-plain", "smollm2", method="lora-balanced", batch_size=32, fast=False, steps=60, warm_up=20),
        Entry("smollm2-lora", "smollm2", method="lora-balanced", batch_size=32),
        # Weights, gradients and AdamW's moments are 2.85 B x 16 bytes = 42.5 GiB: two cards hold them, one does not.
        Entry("t5-xl-full", "t5-xl", batch_size=8, fast=False, steps=20, warm_up=5, gib=42),
    )
}


def t5(shape: str, vocabulary: int = 32_128) -> transformers.T5ForConditionalGeneration:
    """A model of a FLAN-T5 shape with random weights; its head is its own and scaled, or losses are in the hundreds."""
    d_model, d_ff, layers, heads = T5_SHAPES[shape]
    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=d_model, d_kv=64, d_ff=d_ff, num_layers=layers, num_heads=heads,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    network = transformers.T5ForConditionalGeneration(config)
    network.lm_head.weight = torch.nn.Parameter(torch.randn(vocabulary, d_model) * d_model**-0.5)
    return network


def build(model: str, method: str) -> models.Model:
    """A model of `Entry`'s, with a fresh adapter where its method has one."""
    transformers.set_seed(0)
    base = models.load(experiments.EXPERIMENTS["smollm2-dialogsum"]) if model == "smollm2" else None
    if base is None:  # FLAN-T5's tokenizer is not at hand: SmolLM2's has dialogues of about the same length
        path = models.resolve(experiments.PACKAGED_MODEL)
        tokenizer, _ = models.load_family(path, experiments.experiment("quickstart"))
        with hardware.device():  # on the CPU an xl takes a minute to draw
            network = t5(model)
        base = shapes.folded(models.Model(network, tokenizer, T5(tokenizer, 512, 0)))
    transformers.set_seed(0)
    network = models.adapt(base.network, experiments.method(method))
    return models.Model(network, base.tokenizer, base.family)


def measure(entry: Entry, splits: datasets.DatasetDict) -> dict[str, Any]:
    """Samples a second in steady state, peak memory of each card, the share of the cards' arithmetic, and the losses.

    With several processes also the seconds that exchanging the gradients takes by itself. Where memory does not suffice
    `failed` says so.
    """
    found = {
        "name": entry.name,
        "model": entry.model,
        "method": entry.method,
        "gpus": processes.count(),
        "batch_size": entry.batch_size,
    }
    if entry.gib:
        found["gib"] = entry.gib
    with small_cards.at_most(entry.gib) if entry.gib else contextlib.nullcontext():
        try:
            return found | _train(entry, splits)
        except hardware.NotEnoughMemory as error:
            return found | {"failed": small_cards.reason(error)}


def _train(entry: Entry, splits: datasets.DatasetDict) -> dict[str, Any]:
    model = build(entry.model, entry.method)
    rows = encode(splits["train"], model.family)
    settings = Settings(1e-4, batch_size=entry.batch_size, select_by="loss")
    sharded = is_sharded(model.network, experiments.method(entry.method))
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(settings, folder, model, rows, sharded=sharded)
        trainer = trainer_class()(model, settings, args=_short(arguments, entry), train_dataset=rows)
        trainer.fast = entry.fast and hardware.fast_steps()
        watch = _Stopwatch(entry.warm_up)
        trainer.add_callback(watch)
        with hardware.PeakMemory() as peak:
            trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    samples = entry.batch_size * (entry.steps - entry.warm_up) / watch.seconds
    found = {
        "fast": trainer.fast,
        "sharded": sharded,
        "micro_batch": arguments.per_device_train_batch_size,
        "checkpointing": getattr(arguments, CHECKPOINTING),
        "samples_per_second": round(samples, 1),
        "step_milliseconds": round(1000 * watch.seconds / (entry.steps - entry.warm_up), 2),
        "warm_up_seconds": round(watch.warm_up_seconds, 1),
        "peak_memory_bytes": trainer.peak_memory,
        "peak_memory_bytes_each": processes.gather(peak.bytes),
        **models.count_parameters(model.network),
        "losses": [round(loss, 4) for loss in losses],
        "steps_a_loss": arguments.logging_steps,
    }
    flops = flops_a_sample(model, rows)
    most = peak_flops(hardware.describe()["device"])
    if most and entry.method == "full":
        found["mfu"] = round(samples * flops / (most * processes.count()), 4)
    if processes.count() > 1 and not sharded:
        trainer.model.zero_grad()
        size = 4 * found["trainable_parameters"]
        seconds = exchange_seconds(size)
        found["all_reduce_milliseconds"] = round(1000 * seconds, 3)
        found["bus_gigabytes"] = float(f"{scaling.bus_gigabytes(size, processes.count(), seconds):.3g}")
    return found


def peak_flops(device: str) -> float | None:
    """Operations a second that a card of that name is sold with, where it is in `PEAK_FLOPS`."""
    return next((rate for card, rate in PEAK_FLOPS.items() if card in device), None)


def flops_a_sample(model: models.Model, rows: datasets.Dataset) -> float:
    """Operations to train on a pair of mean length, padding not counted: 6 a weight and token (Kaplan et al. 2020)."""
    prompt = sum(map(len, rows["input_ids"])) / len(rows)
    labels = sum(map(len, rows["labels"])) / len(rows)
    network = model.network
    if not isinstance(model.family, EncoderDecoder):
        head = network.get_input_embeddings().weight.numel()
        return 6 * ((network.num_parameters() - head) * (prompt + labels) + head * labels)
    encoder = sum(weight.numel() for weight in network.encoder.block.parameters())
    decoder = sum(weight.numel() for weight in network.decoder.block.parameters())
    return 6 * (encoder * prompt + (decoder + network.lm_head.weight.numel()) * labels)


def _short(arguments: TrainingArguments, entry: Entry) -> TrainingArguments:
    arguments.max_steps, arguments.logging_steps = entry.steps, max(1, entry.steps // 12)
    train_alone(arguments)
    if not entry.gib:  # what does not fit then is seen, and not planned around
        arguments.per_device_train_batch_size = processes.share(entry.batch_size, processes.count())
        arguments.gradient_accumulation_steps = 1
    return arguments


class _Stopwatch(TrainerCallback):
    """Seconds from the end of the warm-up to the last step, the card's work included."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: transformers.TrainerState, control: Any, **_: Any) -> None:
        if state.global_step in (self.warm_up, state.max_steps):
            now = hardware.clock()
            if state.global_step == self.warm_up:
                self.warm_up_seconds, self.start = now - self.begin, now
            else:
                self.seconds = now - self.start


def table(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The measurements of training on one device, a row each, of records as `measured.records` reads them."""
    rows = [
        {
            "model": title(entry["model"]),
            "run": entry["method"],
            "batch": entry["batch_size"],
            "steps": scaling.steps(entry),
            "samples/s": round(entry["samples_per_second"]),
            "ms a step": round(entry["step_milliseconds"]),
            "peak GiB": f"{entry['peak_memory_bytes'] / hardware.GIB:.1f}",
            "MFU": f"{entry['mfu']:.1%}" if "mfu" in entry else "–",
            "compiling s": round(entry["warm_up_seconds"]) if entry["fast"] else "–",
            "device": entry["device"],
        }
        for entry in found.values()
        if "step_milliseconds" in entry and entry.get("gpus", 1) == 1
    ]
    if not rows:
        return pd.DataFrame()
    order = ["model", "run", "steps", "batch"]
    return pd.DataFrame(rows).sort_values(order, ascending=[False, True, False, True]).set_index("model")
