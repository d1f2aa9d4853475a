"""What runs cost: trained parameters, seconds, memory, energy, money, and the size of what is saved."""

from collections.abc import Sequence

import pandas as pd

from ..report import display_name
from ..runs import Run

COST_COLUMNS = {  # key in `cost_measures`: heading, format
    "trained": ("trainable parameters (%)", ".2f"),
    "train_seconds": ("training (s)", ".0f"),
    "generate_seconds": ("generation (s)", ".0f"),
    "peak_gb": ("peak memory (GB)", ".2f"),
    "energy_wh": ("energy (Wh)", ".1f"),
    "price": ("price", ".4f"),
    "ship_mb": ("saved file (MB)", ".1f"),
}
_SECONDS_PER_HOUR = 3600


def costs(runs: Sequence[Run], price_per_hour: float | None = None) -> pd.DataFrame:
    """A row per run: its `cost_measures`, and on which device; a column that no run has is left out."""
    rows = []
    for run in runs:
        measures = cost_measures(run, price_per_hour)
        row = {heading: format(measures[key], spec) for key, (heading, spec) in COST_COLUMNS.items() if key in measures}
        rows.append({"run": display_name(run), **row, "device": run.environment["device"]})
    present = [heading for heading, _ in COST_COLUMNS.values() if any(heading in row for row in rows)]
    return pd.DataFrame(rows).set_index("run")[[*present, "device"]].fillna("–")


def cost_measures(run: Run, price_per_hour: float | None = None) -> dict[str, float]:
    """What a run cost: percent of the parameters trained, seconds, GB, Wh of the GPU, money, MB saved. Absent: unknown.

    What is saved is the adapter, all weights in fp32, or nothing. `price_per_hour` is of one device, in any currency;
    the price is of training and generating, on all devices.
    """
    known = run.metrics
    measures: dict[str, float] = {"trained": 100 * known["trainable_parameters"] / known["parameters"]}
    measures |= {name: known[name] for name in ("train_seconds", "generate_seconds") if name in known}
    if "peak_memory_bytes" in known:
        measures["peak_gb"] = known["peak_memory_bytes"] / 1e9
    joules = ("train_joules", "generate_joules") if run.config.settings else ("generate_joules",)
    if all(name in known for name in joules):  # a training that was interrupted has none
        measures["energy_wh"] = sum(known[name] for name in joules) / _SECONDS_PER_HOUR
    if price_per_hour is not None:
        seconds = known.get("train_seconds", 0) + known.get("generate_seconds", 0)
        measures["price"] = price_per_hour * seconds / _SECONDS_PER_HOUR * run.environment.get("processes", 1)
    shipped = known.get("adapter_bytes", 4 * known["parameters"]) if run.config.settings else 0
    return measures | {"ship_mb": shipped / 1e6}
