"""Figures of runs: labelled axes, readable in greyscale, the same colour and marker for a run everywhere."""

from collections.abc import Sequence

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


def loss_curves(runs: Sequence[Run]) -> Figure:
    """Training loss (lines) and validation loss (markers) over steps, of the runs that were trained."""
    figure, (ax,) = panels()
    for run in (run for run in runs if not run.log.empty):
        trained, validated = run.log.dropna(subset="loss"), run.log.dropna(subset="eval_loss")
        style = {"color": colour_of(run), "markeredgecolor": "white"}
        ax.plot(trained["step"], trained["loss"], alpha=0.75, linewidth=1.3, label=display_name(run), **style)
        ax.plot(validated["step"], validated["eval_loss"], "--", marker=MARKERS.get(run.name, "o"), **style)
    ax.set(xlabel="optimizer step", ylabel="cross-entropy per token (nats)")
    ax.set_title("Loss: training (lines), validation (markers)")
    ax.legend(frameon=False)
    return figure
