"""What a record of module `growth` says: how seconds and memory of a step grow, as a figure and as a table."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from . import figures, memory, small_cards, throughput
from .memory import GIB

QUESTIONS = {
    "length": "tokens in a pair",
    "batch": "pairs in a batch",
    "model": "model",
    "rank": "LoRA's rank",
}


def figure(record: dict[str, Any]) -> Figure:
    """Seconds a step, and memory where it was measured, of a record of module `growth`; with limits drawn in.

    The dashed line is what the card's arithmetic would take alone, 6 operations a weight and token; dotted lines are
    what small cards leave.
    """
    done = [point for point in record["points"] if "failed" not in point]
    with_memory = any("peak_memory_bytes" in point for point in done)
    drawn, axes = figures.panels(4, width=3, height=2.6, rows=1 + with_memory)
    peak = throughput.peak_flops(record["device"])
    for column, (question, called) in enumerate(QUESTIONS.items()):
        some = [point for point in done if point["question"] == question]
        values = [point["value"] for point in some]
        places = range(len(values)) if question == "model" else values
        axes[column].plot(places, [point["step_seconds"] for point in some], "s-", color="#1b3a6b")
        if peak and question in ("length", "batch"):
            least = [6 * one["parameters"] * one["tokens"] * one["batch_size"] / peak for one in some]
            axes[column].plot(places, least, "--", color="#9a9a9a")
        shown = [axes[column]]
        if with_memory:
            below = axes[4 + column]
            below.plot(places, [point["peak_memory_bytes"] / GIB for point in some], "D-", color="#d9603b")
            for gib in small_cards.CARDS:
                if gib < below.get_ylim()[1]:
                    below.axhline(gib - memory.CONTEXT / GIB, color="black", linestyle=":", linewidth=0.8)
            shown.append(below)
        for ax in shown:
            ax.margins(0.08)
            ax.set(xlabel=called, ylim=(0, None))
            if question == "model":
                ax.set_xticks(places, values)
    axes[0].set(ylabel="seconds a step")
    if with_memory:
        axes[4].set(ylabel="peak GiB")
    return drawn


def table(record: dict[str, Any]) -> pd.DataFrame:
    """The same as figures, a row a point."""
    rows = [
        {"what changes": point["question"], "to": str(point["value"]), "pairs × tokens":
         f"{point['batch_size']} × {point['tokens']}", "seconds a step": _or(point, "step_seconds", "{:.3f}"),
         "ms a pair": f"{1000 * point['step_seconds'] / point['batch_size']:.0f}" if "step_seconds" in point else "–",
         "peak GiB": f"{point['peak_memory_bytes'] / GIB:.1f}" if "peak_memory_bytes" in point else "–",
         "failed": point.get("failed", "").partition(":")[0]}
        for point in record["points"]
    ]  # fmt: skip
    return (
        pd.DataFrame(rows)
        .set_index("what changes")
        .drop(columns=[] if any("failed" in point for point in record["points"]) else ["failed"])
    )


def _or(entry: dict[str, Any], key: str, form: str) -> str:
    return form.format(entry[key]) if key in entry else "–"
