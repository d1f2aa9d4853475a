"""Figures of runs: labelled axes, readable in greyscale, the same colour and marker for a run everywhere."""

from collections.abc import Mapping

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .experiments import STUDY_RUNS
from .runs import Run

# Lightness differs as well as hue.
COLOURS = dict(zip(STUDY_RUNS, ("#9a9a9a", "#1b3a6b", "#f0b94a", "#d9603b", "#7d1d3f"), strict=True))
MARKERS = dict(zip(STUDY_RUNS, "osvD^", strict=True))


def panels(
    columns: int = 1, width: float = 6.4, height: float = 3.6, *, rows: int = 1, sharey: bool = False
) -> tuple[Figure, list[plt.Axes]]:
    """A white figure and its axes, row by row, each `width` x `height` inches, to be returned by a cell."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, sharey=sharey
    )
    figure.set_facecolor("white")
    plt.close(figure)  # the notebook shows what the cell returns, once
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def colour_of(run: Run) -> str:
    """A run's colour, of its method."""
    return COLOURS.get(run.name, "#3f7f5f")


def memory_bars(parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """A stacked bar per entry of what its memory holds, in bytes by name, and the sum in GB (10^9 bytes)."""
    figure, (ax,) = panels(width=8, height=0.55 * len(parts) + 1.2)
    table = pd.DataFrame(parts).T / 1e9
    shades = ["#1b3a6b", "#5c7fb5", "#a9c0e0", "#f0b94a", "#d9603b"]
    table.plot.barh(ax=ax, stacked=True, width=0.7, edgecolor="white", color=shades, legend=False)
    for place, total in enumerate(table.sum(axis=1)):
        ax.text(total, place, f" {total:.2f} GB", va="center")
    ax.set(xlabel="memory (GB)", xlim=(0, 1.15 * ax.get_xlim()[1]))
    ax.invert_yaxis()
    figure.legend(frameon=False, ncols=5, loc="outside lower center", fontsize="small")
    return figure
