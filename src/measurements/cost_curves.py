"""How the cost of a training step grows: with the length of dialogues, their number, the model's size and LoRA's rank.

`python -m measurements growth`. One thing changes at a time, everything else stays at `CostPoint`'s defaults. Pairs are
random tokens, all of one length, so that nothing is padded; steps are plain (nothing is compiled: each shape would
take half a minute), with AdamW and a batch held whole.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from accelerate.utils import memory, send_to_device

from dialogue_summarization import experiments, hardware, models

from . import short_training

SUMMARY_TOKENS = 36  # of a pair, DialogSum's mean
QUESTIONS = {"length": "tokens", "batch": "batch_size", "model": "model", "rank": "rank"}  # what changes


@dataclass(frozen=True)
class CostPoint:
    """A step to measure: `question` is one of `QUESTIONS`, `tokens` are a pair's, `rank` LoRA's (None: full)."""

    question: str
    model: str = "smollm2"
    rank: int | None = None
    batch_size: int = 8
    tokens: int = 256


POINTS = [
    *(CostPoint("length", tokens=tokens) for tokens in (128, 256, 512, 1024, 2048)),
    *(CostPoint("batch", batch_size=size) for size in (1, 2, 4, 8, 16, 32, 64)),
    *(CostPoint("model", model=shape) for shape in ("t5-small", "t5-base", "t5-large")),
    *(CostPoint("rank", rank=rank) for rank in (4, 8, 16, 32, 64, 128)),
]


def measure_growth(record: dict[str, object], splits: object = None, options: object = None) -> None:
    """All `POINTS`; on a CPU it takes hours."""
    record["points"] = measure(POINTS, steps=10, warm_up=3, build=short_training.build)


def measure(
    points: list[CostPoint], steps: int, warm_up: int, build: Callable[[str, str], models.ModelBundle]
) -> list[dict[str, object]]:
    """One row per point: seconds per step, of `steps` after the `warm_up`, and peak memory, or why it failed.

    `build` gives a fresh model, from a model's and a method's name.
    """
    rows = []
    for point in points:
        bundle = build(point.model, "full")
        if point.rank:
            method = experiments.Method("lora", experiments.lora(point.rank, experiments.ATTENTION))
            bundle = replace(bundle, model=models.apply_method(bundle.model, method))
        row = asdict(point) | {"value": getattr(point, QUESTIONS[point.question])}
        row |= models.count_parameters(bundle.model)
        try:
            rows.append(row | _measure_steps(bundle, point, steps, warm_up))
        except RuntimeError as error:  # out of memory
            rows.append(row | {"failed": short_training.first_line(error)})
        del bundle
        memory.clear_device_cache(garbage_collection=True)
    return rows


def _measure_steps(bundle: models.ModelBundle, point: CostPoint, steps: int, warm_up: int) -> dict[str, object]:
    device = hardware.device()
    model = bundle.model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=device.type != "mps")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (point.batch_size, point.tokens), generator=generator).tolist()
    rows = [{"input_ids": row[:-SUMMARY_TOKENS], "labels": row[-SUMMARY_TOKENS:]} for row in ids]
    batch = send_to_device(bundle.family.collate(rows), device)
    with hardware.Meter() as meter:
        for number in range(warm_up + steps):
            if number == warm_up:
                start = short_training.synchronized_time()
            optimizer.zero_grad()
            with hardware.autocast(model):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
        seconds = (short_training.synchronized_time() - start) / steps
    row = {"step_seconds": round(seconds, 4), "samples_per_second": round(point.batch_size / seconds, 2)}
    # Of a process on the CPU, earlier points' memory would be a part.
    return row | ({"peak_memory_bytes": meter.peak_bytes} if device.type == "cuda" else {})
