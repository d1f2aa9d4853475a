"""What the committed measurements say, as tables, of whatever records there are."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
import transformers

from dialogue_summarization import experiments, hardware, intervals, models, report, runs
from dialogue_summarization.acceleration import memory
from dialogue_summarization.evaluation import statistics

from . import card_limits, short_training
from .throughput import BASES, CONFIGURATIONS

FOLDER, REFERENCE = runs.OUTPUTS / "benchmarks", runs.OUTPUTS / "reference"
TITLES = {"smollm2": "SmolLM2-135M", "t5-base": "FLAN-T5-Base's shape", "t5-xl": "FLAN-T5-XL's shape"}
LENGTHS = {  # of all 12,460 training pairs of DialogSum, in SmolLM2's tokens; prompts as the experiments truncate them
    "smollm2": memory.SequenceLengths(1024, 248, 279, 117),
    "t5-base": memory.SequenceLengths(512, 248, 258, 106),
}
SIZES = (*card_limits.CARDS, 79)  # GiB, as GPUs are sold; the last one is an H100, as CUDA reports it
EXPECTED = (*CONFIGURATIONS, "generate-beams1", "generate-beams4", *card_limits.NAMES, "growth", "study")
MEASURES = ["rouge1", "rouge2", "rougeL"]
Records = Mapping[str, Mapping[str, object]]


def load(folder: str | Path = FOLDER) -> dict[str, dict[str, object]]:
    """Every record of a folder, by its name."""
    contents = (json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).glob("*.json")))
    return {record["name"]: record for record in contents}


def throughput(records: Records) -> pd.DataFrame:
    """One row per training on one device, in steady state; `what` describes steps that were tried and did not stay."""
    rows = []
    for record in sorted(records.values(), key=lambda record: record.get("samples_per_second", 0)):
        if "step_milliseconds" in record and record.get("gpus", 1) == 1:
            warm_up = cell(record, "warm_up_seconds") if record["fast"] else "–"
            row = _what(record) | {"ms per step": cell(record, "step_milliseconds"), "peak memory (GB)": _gb(record)}
            row |= {"MFU": cell(record, "mfu", ".1%"), "warm-up (s)": warm_up, "device": record["device"]}
            rows.append(row | ({"what": record["what"]} if "what" in record else {}))
    order = ["model", "run", "steps", "batch"]
    table = pd.DataFrame(rows, columns=rows[0] if rows else order)
    return table.sort_values(order, ascending=[False, True, False, True], kind="stable").set_index("model")


def several_gpus(records: Records) -> pd.DataFrame:
    """One row per training on several GPUs: its speed and losses beside those of one GPU with the same effective batch.

    Also one GPU's step on as many dialogues as each of the several has, the exchange of gradients by itself, and peaks
    of the fullest GPU. What is behind a configuration's name, `-batch16` and `-gpus2`, tells its records apart.
    """
    by_key = {}
    for record in records.values():
        if "batch_size" in record:
            name = re.sub(r"(-batch\d+)?(-gpus\d+)?$", "", record["name"])
            by_key[name, record.get("gpus", 1), record["batch_size"]] = record
    rows = []
    for (name, gpus, batch_size), record in by_key.items():
        if gpus > 1 and "failed" not in record:
            one, part = by_key.get((name, 1, batch_size), {}), by_key.get((name, 1, batch_size // gpus), {})
            rate = "out of memory" if "failed" in one else cell(one, "samples_per_second")
            row = _what(record) | {"GPUs": gpus, "samples/s on one": rate, "speed-up": "–", "losses differ by": "–"}
            if "losses" in one:
                row["speed-up"] = f"{record['samples_per_second'] / one['samples_per_second']:.2f}"
                row["losses differ by"] = f"{pd.Series(record['losses']).sub(one['losses']).abs().max():.4f}"
            for heading, timed in (("ms per step", record), ("one GPU, batch / n (ms)", part)):
                row[heading] = cell(timed, "step_milliseconds")
            row["gradient sync (ms)"] = cell(record, "all_reduce_milliseconds", ".2f")
            row |= {"peak memory on one (GB)": _gb(one), "each (GB)": _gb(record), "device": record["device"]}
            rows.append(row)
    return pd.DataFrame(rows, columns=rows[0] if rows else ["model"]).set_index("model")


def cards(records: Records, sizes: Sequence[float] = SIZES, packed: bool = False) -> pd.DataFrame:
    """How GPUs sold as so many GB hold each of `RUNS`: micro-batch × accumulation; peak in GB, planned and measured."""
    columns: dict[str, dict[str, str]] = {}
    for model, method in card_limits.RUNS:
        column, dims = columns.setdefault(f"{TITLES[model]}, {label(method)}", {}), model_dims(model, method)
        for size in sizes:
            memory_bytes = int(size * hardware.GIB)
            plan = memory.plan_batch(memory_bytes, card_limits.BATCH_SIZE, dims, LENGTHS[model], packed=packed)
            held = f"{plan.micro_batch} × {plan.accumulation}{', checkpointing' if plan.checkpointing else ''}"
            column[f"{size:g} GB"] = f"{held}; planned {plan.bytes / 1e9:.1f}"
            for run in records.get(f"fits-{size:g}{'-packed' if packed else ''}", {"runs": ()})["runs"]:
                if (run["model"], run["method"]) == (model, method):
                    took = run["failed"].partition(":")[0] if "failed" in run else f"measured {_gb(run, 'train_bytes')}"
                    halved = run.get("micro_batch", plan.micro_batch) < plan.micro_batch
                    column[f"{size:g} GB"] += f", {took}" + (f", halved to {run['micro_batch']}" if halved else "")
    return pd.DataFrame(columns).rename_axis("GPU")


def model_dims(model: str, method: str) -> memory.ModelDims:
    """The sizes of a model of `RUNS` as a method trains it; no weights are made."""
    with torch.device("meta"):
        if model == "smollm2":
            config = transformers.AutoConfig.from_pretrained(models.local_snapshot(experiments.PACKAGED_MODEL))
            base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        else:
            base = short_training.t5(model)
        return memory.dims_of(models.apply_method(base, experiments.method(method)))


def quantized_generation(records: Records, folder: Path = FOLDER / "quantized") -> pd.DataFrame:
    """One row per base model, untrained: test scores, their distance to the same base in fp32, weights, seconds."""
    rows = []
    for experiment in ("smollm2-dialogsum", "quickstart"):
        places = {name: folder / experiment / name / "seed-0" for name in BASES}
        scores = {name: pd.read_csv(place / "scores.csv") for name, place in places.items() if place.exists()}
        for name, own in scores.items():
            row = {"run": name, "dialogues": len(own)}
            for kind in MEASURES:
                row[report.HEADINGS[kind]] = report.with_interval(own[kind].mean(), intervals.interval(own[kind]))
            gap = statistics.compare(own["rougeL"], scores["zero-shot"]["rougeL"])
            row["ROUGE-L minus fp32"] = report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
            row |= {"parameters (MB)": round(records["weights"]["bytes"][name] / 1e6)}
            row |= {"generation (s)": runs.read_json(places[name] / "metrics.json")["generate_seconds"]}
            rows.append(row | {"device": runs.read_json(places[name] / "environment.json")["device"]})
    return pd.DataFrame(rows).set_index("run")


def cell(record: Mapping[str, object], key: str, spec: str = ".4g") -> str:
    """A number of a record; a dash where it was not measured."""
    return format(record[key], spec) if key in record else "–"


def _what(record: Mapping[str, object]) -> dict[str, object]:
    steps = "FSDP" if record.get("sharded") else "fast" if record["fast"] else "plain"
    row = {"model": TITLES[record["model"]], "run": label(record["method"]), "batch": record["batch_size"]}
    return row | {"steps": steps, "samples/s": cell(record, "samples_per_second")}


def _gb(record: Mapping[str, object], key: str = "peak_memory_bytes") -> str:
    return f"{record[key] / 1e9:.1f}" if key in record else "–"


def label(method: str) -> str:
    """A method as tables call it."""
    return report.title_of(method, experiments.method(method).peft)
