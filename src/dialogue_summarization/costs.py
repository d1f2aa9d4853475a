"""What runs cost to train, keep and use, as measured, and what that bought."""

from collections.abc import Sequence

import pandas as pd

from .report import label
from .runs import Run

HOUR = 3600
BYTES_A_WEIGHT = 4  # weights are kept as fp32
COLUMNS = {  # key in `measures`, heading, format
    "share": ("trained %", ".2f"),
    "train_seconds": ("training s", ".0f"),
    "generate_seconds": ("summaries s", ".0f"),
    "peak_gib": ("peak memory GiB", ".2f"),
    "energy_wh": ("energy Wh", ".1f"),
    "price": ("price", ".4f"),
    "ship_mb": ("to ship MB", ".1f"),
}


def measures(run: Run, price_an_hour: float | None = None) -> dict[str, float]:
    """What a run cost: seconds, GiB, Wh of the GPU, money, the share trained in percent, MB to ship. Absent: unknown.

    Args:
        run: The run.
        price_an_hour: What a device costs an hour, in any currency; the price is of training and the test summaries, on
            all devices that there were.
    """
    known = run.metrics
    found: dict[str, float | None] = {
        "share": 100 * known["trainable_parameters"] / known["parameters"],
        "train_seconds": known.get("train_seconds"),
        "generate_seconds": known.get("generate_seconds"),
        "peak_gib": known["peak_memory_bytes"] / (1 << 30) if "peak_memory_bytes" in known else None,
        "ship_mb": shipped(run) / 1e6,
    }
    counted = ("train_joules", "generate_joules") if run.config.settings else ("generate_joules",)
    if all(name in known for name in counted):  # a training that was interrupted has none
        found["energy_wh"] = sum(known[name] for name in counted) / HOUR
    if price_an_hour is not None:
        seconds = known.get("train_seconds", 0) + known.get("generate_seconds", 0)
        found["price"] = price_an_hour * seconds / HOUR * run.environment.get("processes", 1)
    return {name: value for name, value in found.items() if value is not None}


def shipped(run: Run) -> float:
    """Bytes that somebody needs who has the base model: the adapter, all weights as fp32, or nothing."""
    if run.config.settings is None:
        return 0.0
    return run.metrics.get("adapter_bytes", run.metrics["parameters"] * BYTES_A_WEIGHT)


def table(runs: Sequence[Run], price_an_hour: float | None = None) -> pd.DataFrame:
    """A row a run: its cost, and on which device; a column that no run has is left out."""
    rows = []
    for run in runs:
        found = measures(run, price_an_hour)
        row = {heading: format(found[key], spec) for key, (heading, spec) in COLUMNS.items() if key in found}
        rows.append({"run": label(run), **row, "device": run.environment["device"]})
    order = [heading for heading, _ in COLUMNS.values() if any(heading in row for row in rows)]
    return pd.DataFrame(rows).set_index("run")[[*order, "device"]].fillna("–")


def in_a_sentence(runs: Sequence[Run], measure: str = "rougeL", heading: str = "ROUGE-L") -> str:
    """What the recommended LoRA run, or the first there is, saved and cost against full fine-tuning, from the records.

    Not the run that scores best: that would be a choice on the test split.
    """
    full = next((run for run in runs if run.name == "full"), None)
    adapters = [run for run in runs if run.config.peft]
    if full is None or not adapters:
        return "Full fine-tuning and an adapter are needed for a comparison of their costs."
    lora = next((run for run in adapters if run.name == "lora-balanced"), adapters[0])
    theirs, ours = measures(full), measures(lora)
    gap = lora.metrics[measure] - full.metrics[measure]
    parts = [
        f"it trained {ours['share']:.2f} % of the weights and ships {ours['ship_mb']:.1f} MB instead of "
        f"{theirs['ship_mb']:,.0f} MB"
    ]
    if full.environment["device"] == lora.environment["device"]:  # seconds of other devices do not compare
        parts += [
            f"{name} was {ours[key] / theirs[key]:.0%} of full fine-tuning's"
            for key, name in (("train_seconds", "training time"), ("peak_gib", "peak memory"), ("energy_wh", "energy"))
            if key in ours and theirs.get(key)
        ]
    return f"{label(lora)} against {label(full)}: {'; '.join(parts)}; {heading} changed by {gap:+.3f}."
