"""How the cost of a training step grows: with the length of dialogues, their number, the model's size and LoRA's rank.

`python -m dialogue_summarization.benchmark growth`. One thing changes at a time, everything else stays at `Point`'s
defaults. Pairs are random tokens, all of one length, so that nothing is padding; steps are plain (nothing is compiled:
each shape would take half a minute), with AdamW and a batch held whole.
"""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from . import hardware, models
from .experiments import method
from .small_cards import reason

Build = Callable[[str, str], models.Model]  # from a model's and a method's name to a fresh model

SUMMARY = 36  # tokens of a pair that are its summary, DialogSum's mean
LORA = "lora-balanced"  # whose layers the ranks are of


@dataclass(frozen=True)
class Point:
    """A step to measure. `question` says what changes, `tokens` is the length of a pair, `rank` is LoRA's."""

    question: str
    model: str = "smollm2"
    rank: int | None = None  # None trains every weight
    batch_size: int = 8
    tokens: int = 256

    @property
    def value(self) -> int | str:
        """What is on the figure's axis."""
        return {"length": self.tokens, "batch": self.batch_size, "model": self.model, "rank": self.rank}[self.question]


def points(on_card: bool) -> list[Point]:
    """What is measured: less on a CPU, where the pairs of all steps together decide how long it takes."""
    lengths = (128, 256, 512, 1024, 2048) if on_card else (128, 256, 512, 1024)
    batches = (1, 2, 4, 8, 16, 32, 64) if on_card else (1, 2, 4, 8, 16)
    shapes = ("t5-small", "t5-base", "t5-large") if on_card else ("t5-small", "t5-base")
    ranks = (4, 8, 16, 32, 64, 128) if on_card else (4, 16, 64)
    base = 8 if on_card else 2
    return [
        *(Point("length", tokens=length, batch_size=base) for length in lengths),
        *(Point("batch", batch_size=size) for size in batches),
        *(Point("model", model=shape, batch_size=base) for shape in shapes),
        *(Point("rank", rank=rank, batch_size=base) for rank in ranks),
    ]


def measure(build: Build, wanted: list[Point], steps: int, warm_up: int) -> list[dict[str, Any]]:
    """A row a point: seconds a step and the peak of memory, or why it failed.

    Args:
        build: See `Build`.
        wanted: What is measured.
        steps: Steps on the clock.
        warm_up: Steps before.
    """
    found, held, model = [], None, None
    for point in wanted:
        if held != (point.model, point.rank):
            model = None  # before the next one is there
            gc.collect()
            held, model = (point.model, point.rank), _model(build, point)
        row = asdict(point) | {"value": point.value} | models.count_parameters(model.network)
        try:
            found.append(row | _measure(model, point, steps, warm_up))
        except RuntimeError as error:  # memory ran out
            found.append(row | {"failed": reason(error)})
        model.network.zero_grad()
        clear_device_cache()
    return found


def _model(build: Build, point: Point) -> models.Model:
    model = build(point.model, "full")
    if point.rank is None:
        return model
    adapter = method(LORA)
    ranked = replace(adapter, peft={**adapter.peft, "r": point.rank, "lora_alpha": 2 * point.rank})
    return replace(model, network=models.adapt(model.network, ranked))


def _measure(model: models.Model, point: Point, steps: int, warm_up: int) -> dict[str, Any]:
    network, device = model.network.to(hardware.device()).train(), hardware.device()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-6, fused=device.type != "mps")
    chosen = torch.Generator().manual_seed(0)
    ids = torch.randint(5, network.config.vocab_size, (point.batch_size, point.tokens), generator=chosen).tolist()
    rows = [{"input_ids": row[:-SUMMARY], "labels": row[-SUMMARY:]} for row in ids]
    batch = {
        name: value.to(device) if torch.is_tensor(value) else value
        for name, value in model.family.collate(rows).items()
    }

    def step() -> None:
        optimizer.zero_grad()
        with hardware.autocast():
            loss = network(**batch).loss
        loss.backward()
        optimizer.step()

    with hardware.PeakMemory() as peak:
        for number in range(warm_up + steps):
            if number == warm_up:
                start = hardware.clock()
            step()
        end = hardware.clock()
    seconds = (end - start) / steps
    found = {"step_seconds": round(seconds, 4), "samples_per_second": round(point.batch_size / seconds, 2)}
    if device.type == "cuda":  # of a process on the CPU, earlier points' memory is a part
        found["peak_memory_bytes"] = peak.bytes
    return found
