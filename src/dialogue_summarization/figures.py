"""Figures of runs: labelled axes, readable in greyscale, the same colour and marker for a run everywhere."""

from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .experiments import STUDY_RUNS
from .report import display_name
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


def loss_curves(runs: Sequence[Run], ax: plt.Axes | None = None) -> Figure:
    """Training loss (lines) and validation loss (markers) over steps, of the runs that were trained."""
    ax = ax or panels()[1][0]
    for run in (run for run in runs if not run.log.empty):
        trained, validated = run.log.dropna(subset="loss"), run.log.dropna(subset="eval_loss")
        style = {"color": colour_of(run), "markeredgecolor": "white"}
        ax.plot(trained["step"], trained["loss"], alpha=0.75, linewidth=1.3, label=display_name(run), **style)
        ax.plot(validated["step"], validated["eval_loss"], "--", marker=MARKERS.get(run.name, "o"), **style)
    ax.set(
        xlabel="optimizer step", ylabel="loss (nats per token)", title="Loss: training (lines), validation (markers)"
    )
    ax.legend(frameon=False)
    return ax.figure


def memory_bars(parts: Mapping[str, Mapping[str, float]], ax: plt.Axes | None = None) -> Figure:
    """A stacked bar per entry of what its memory holds, in bytes by name, with the sum in GB behind it."""
    ax = ax or panels(width=8, height=0.55 * len(parts) + 1.2)[1][0]
    names = list(dict.fromkeys(name for held in parts.values() for name in held))
    for place, held in enumerate(parts.values()):
        left = 0.0
        for name, shade in zip(names, ("#1b3a6b", "#5c7fb5", "#a9c0e0", "#f0b94a", "#d9603b"), strict=False):
            width = held.get(name, 0) / 1e9
            ax.barh(place, width, 0.7, left, color=shade, edgecolor="white", label=None if place else name)
            left += width
        ax.text(left, place, f" {left:.2f} GB", va="center")
    ax.set_yticks(range(len(parts)), list(parts))
    ax.set(xlabel="memory (GB)", xlim=(0, 1.15 * ax.get_xlim()[1]))
    ax.invert_yaxis()
    ax.figure.legend(frameon=False, ncols=3, loc="outside lower center", fontsize="small")
    return ax.figure
