"""Measure training and generation on this machine: `python -m dialogue_summarization.benchmark NAME ...`.

On several GPUs the same behind `torchrun --standalone --nproc-per-node N -m`; a batch is that of all of them together.
"""

import argparse
import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils.memory import clear_device_cache

from . import (
    data,
    experiments,
    growth,
    hardware,
    models,
    processes,
    quantization,
    runs,
    shapes,
    small_cards,
    throughput,
    whole_study,
)
from .experiments import Generation
from .generation import summarize
from .methods import UNTRAINED
from .packaged import ModelError

NUMBERED = re.compile(r"growth|weights|generate-beams[1-9]\d*|fits-[1-9]\d*(-packed)?")


def measure_generation(num_beams: int, splits: datasets.DatasetDict) -> dict[str, Any]:
    """Seconds to summarize the test split with the packaged model, greedily or with beams."""
    model = models.load(experiments.EXPERIMENTS["smollm2-dialogsum"])
    model.network.to(hardware.device())
    generation = replace(Generation(), num_beams=num_beams)
    write = partial(summarize, model, generation=generation, progress=False)
    dialogues = list(splits["test"]["dialogue"])
    processes.shared(write, dialogues[: 8 * processes.count()])
    start = time.perf_counter()
    texts = processes.shared(write, dialogues)
    seconds = round(time.perf_counter() - start, 2)
    return {
        "name": f"generate-beams{num_beams}",
        "gpus": processes.count(),
        "dialogues": len(texts),
        "num_beams": num_beams,
        "seconds": seconds,
    }


def measure_weights() -> dict[str, Any]:
    """Bytes that the packaged model's weights take in fp32, and in each quantized form that this machine can hold."""
    chosen, found = experiments.EXPERIMENTS["smollm2-dialogsum"], {}
    for name in UNTRAINED:
        with contextlib.suppress(ModelError):
            network = models.load(chosen, experiments.method(name).quantization).network
            found[name] = quantization.weight_bytes(network)
    return {"name": "weights", "bytes": found}


def measure_small_card(name: str, splits: datasets.DatasetDict) -> dict[str, Any]:
    """What `small_cards.measure` finds, for the name `fits-8` or `fits-8-packed`."""
    gib, _, packed = name.removeprefix("fits-").partition("-")
    return {
        "name": name,
        "gib": float(gib),
        "runs": small_cards.measure(float(gib), splits, throughput.build, bool(packed)),
    }


def measure_shape(name: str, splits: datasets.DatasetDict) -> dict[str, Any]:
    """What `shapes.measure` finds, for one of `shapes.NAMES`."""
    return shapes.measure(name, splits, throughput.build)


def measure_growth() -> dict[str, Any]:
    """What `growth.measure` finds on this machine."""
    on_card = hardware.device().type == "cuda"
    rows = growth.measure(throughput.build, growth.points(on_card), *((10, 3) if on_card else (2, 1)))
    return {"name": "growth" if on_card else "growth-cpu", "points": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is named, and write it to `outputs/benchmarks`."""
    parser = argparse.ArgumentParser("benchmark", description=__doc__)
    names = (*throughput.ENTRIES, *shapes.NAMES, *whole_study.NAMES)
    every = ", ".join(names) + ", growth, weights, generate-beamsN, fits-N and fits-N-packed (GiB)"
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"of: {every}")
    parser.add_argument("--dataset", default=experiments.DIALOGSUM)
    parser.add_argument("--batch-size", type=int, metavar="N", help="another batch, of all GPUs together")
    parser.add_argument("--outputs", type=Path, default=runs.OUTPUTS / "benchmarks")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in names and not NUMBERED.fullmatch(name):
            parser.error(f"There is no measurement {name!r}. There are: {every}.")
    processes.join()
    whole = data.load_source(options.dataset)
    splits = datasets.DatasetDict(whole | {"train": whole["train"].select(range(min(6_000, len(whole["train"]))))})
    options.outputs.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        clear_device_cache(garbage_collection=True)  # the last one's model is in circles
        if name in throughput.ENTRIES:
            entry = throughput.ENTRIES[name]
            if options.batch_size:
                entry = replace(entry, name=f"{name}-batch{options.batch_size}", batch_size=options.batch_size)
            found = throughput.measure(entry, splits)
        elif name in shapes.NAMES:
            found = measure_shape(name, whole)
        elif name in whole_study.NAMES:
            found = whole_study.measure(name, options.dataset)
        elif name == "growth":
            found = measure_growth()
        elif name == "weights":
            found = measure_weights()
        elif name.startswith("fits-"):
            found = measure_small_card(name, whole)
        else:
            found = measure_generation(int(name.removeprefix("generate-beams")), splits)
        if processes.count() > 1:
            found["name"] += f"-gpus{processes.count()}"
        print(json.dumps({key: value for key, value in found.items() if key != "losses"}), flush=True)
        runs.write_json(options.outputs / f"{found['name']}.json", found | runs.environment())
    processes.leave()


if __name__ == "__main__":
    main()
