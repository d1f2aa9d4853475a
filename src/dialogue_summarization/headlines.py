"""The headline figures of all records, `outputs/benchmarks/summary.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import runs
from .measured import FOLDER, records
from .runs import Run

EPOCHS, PAIRS = 3, 12_460  # of SmolLM2's training in `summary`
HEADLINES = {  # of `summary`: the record and what of it
    "t5_plain_trainer_samples_per_s": ("t5-base-full-plain", "samples_per_second"),
    "t5_full_batch64_samples_per_s": ("t5-base-full", "samples_per_second"),
    "t5_lora_samples_per_s": ("t5-base-lora", "samples_per_second"),
    "summaries_500_greedy_seconds": ("generate-beams1", "seconds"),
    "summaries_500_beam4_seconds": ("generate-beams4", "seconds"),
    "study_seconds": ("study", "seconds"),
    "quickstart_cpu_seconds": ("quickstart-cpu", "seconds"),
}


def summary(folder: str | Path = FOLDER, made: Sequence[Run] | None = None) -> dict[str, Any]:
    """The headline figures of the records in one flat object, one GPU each; None where a record is missing.

    `device` names all that they were measured on; the records say which is which. SmolLM2's seconds for three epochs of
    DialogSum are of the benchmarks' steady state; `..._with_compiling` are read from the logs of the study's runs.

    Args:
        folder: Where the records are.
        made: The study's runs; the committed ones where it is None.
    """
    found = records(folder)
    made = runs.collect("smollm2-dialogsum", "nowhere") if made is None else made
    full = [
        entry for entry in found.values()
        if (entry.get("model"), entry.get("method")) == ("t5-base", "full") and "samples_per_second" in entry
        and entry["fast"] and entry.get("gpus", 1) == 1
    ]  # fmt: skip
    best = max(full, key=lambda entry: entry["samples_per_second"], default={})
    names = [*(name for name, _ in HEADLINES.values()), "smollm2-full", "smollm2-lora"]
    used = [found[name] for name in names if name in found]
    used += [best] if best else []
    compiled = {name: _first_seed(made, name) for name in ("full", "lora-balanced")}
    used += [run.environment for run in compiled.values() if run]
    return {
        "device": ", ".join(sorted({entry["device"] for entry in used})) or None,
        **{headline: found.get(name, {}).get(key) for headline, (name, key) in HEADLINES.items()},
        "t5_full_samples_per_s": best.get("samples_per_second"),
        "t5_full_mfu": best.get("mfu"),
        "smollm2_full_3_epochs_seconds": _steady_seconds(found, "smollm2-full"),
        "smollm2_lora_3_epochs_seconds": _steady_seconds(found, "smollm2-lora"),
        "smollm2_full_3_epochs_seconds_with_compiling": _seconds(compiled["full"]),
        "smollm2_lora_3_epochs_seconds_with_compiling": _seconds(compiled["lora-balanced"]),
    }


def _steady_seconds(found: dict[str, Any], name: str) -> float | None:
    """Seconds that three epochs of DialogSum's training pairs take at a record's rate."""
    return round(EPOCHS * PAIRS / found[name]["samples_per_second"], 2) if name in found else None


def _first_seed(made: Sequence[Run], name: str) -> Run | None:
    """The run of that name with the lowest seed of those that reached the third epoch."""
    some = [run for run in made if run.name == name and run.log["epoch"].max() >= EPOCHS]
    return min(some, key=lambda run: run.config.seed, default=None)


def _seconds(run: Run | None) -> float | None:
    """Seconds of training until the end of the third epoch."""
    return float(run.log.loc[run.log["epoch"] >= EPOCHS - 1e-6, "seconds"].iloc[0]) if run else None
