"""Figures from data and runs: labelled axes, readable in greyscale, the same colour and marker for a run everywhere."""

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .report import HEADINGS, dialogue_scores, label
from .runs import Run
from .significance import interval

# Lightness differs as well as hue.
COLOURS = {
    "zero-shot": "#9a9a9a",
    "full": "#1b3a6b",
    "lora-efficient": "#f0b94a",
    "lora-balanced": "#d9603b",
    "lora-high-performance": "#7d1d3f",
}
MARKERS = {"zero-shot": "o", "full": "s", "lora-efficient": "v", "lora-balanced": "D", "lora-high-performance": "^"}


def _axes(columns: int = 1, width: float = 6.4, height: float = 3.6) -> tuple[Figure, list[plt.Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), layout="constrained", squeeze=False)
    figure.set_facecolor("white")
    plt.close(figure)  # the notebook shows what the cell returns, once
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _colour(run: Run) -> str:
    return COLOURS.get(run.name, "#3f7f5f")


def lengths(splits: Mapping[str, datasets.Dataset]) -> Figure:
    """How long dialogues and references are, in words."""
    figure, (left, right) = _axes(2, width=4.8)
    styles = ("-", "--", ":")
    for (split, rows), style in zip(splits.items(), styles, strict=False):
        dialogues = [len(text.split()) for text in rows["dialogue"]]
        references = [len(text.split()) for several in rows["summaries"] for text in several]
        for ax, counts in ((left, dialogues), (right, references)):
            values, edges = np.histogram(counts, bins=20, density=True)
            ax.stairs(values, edges, label=split, linestyle=style, color="#1b3a6b", linewidth=1.6)
    left.set(xlabel="words in a dialogue", ylabel="density", title="Dialogues")
    right.set(xlabel="words in a reference summary", ylabel="density", title="References")
    right.legend(frameon=False)
    return figure


def loss_curves(runs: Sequence[Run]) -> Figure:
    """Training and validation loss over steps, of the runs that trained."""
    figure, (ax,) = _axes()
    for run in runs:
        if run.log.empty:
            continue
        trained, validated = run.log.dropna(subset="loss"), run.log.dropna(subset="eval_loss")
        ax.plot(trained["step"], trained["loss"], color=_colour(run), alpha=0.75, linewidth=1.3, label=label(run))
        ax.plot(validated["step"], validated["eval_loss"], color=_colour(run), marker=MARKERS.get(run.name, "o"),
                linestyle="--", markeredgecolor="white")  # fmt: skip
    ax.set(xlabel="step of the optimizer", ylabel="cross-entropy a token (nats)",
           title="Loss: training (lines), validation (markers)")  # fmt: skip
    ax.legend(frameon=False)
    return figure


def rouge_bars(runs: Sequence[Run], test: datasets.Dataset) -> Figure:
    """ROUGE of each run with its 95 % interval over dialogues."""
    figure, (ax,) = _axes(width=8)
    width = 0.8 / len(runs)
    for place, run in enumerate(runs):
        scores = dialogue_scores(run, test)
        means = [scores[name].mean() for name in HEADINGS]
        bounds = np.array([interval(scores[name]) for name in HEADINGS]).T
        x = np.arange(len(HEADINGS)) + (place - (len(runs) - 1) / 2) * width
        ax.bar(x, means, width * 0.92, color=_colour(run), label=label(run), edgecolor="black", linewidth=0.5)
        ax.errorbar(x, means, yerr=np.abs(bounds - means), fmt="none", ecolor="black", elinewidth=1, capsize=2)
    ax.set_xticks(range(len(HEADINGS)), HEADINGS.values())
    ax.set(ylabel="F1, mean over dialogues", title=f"ROUGE on {len(test)} test dialogues, with 95 % intervals")
    ax.legend(frameon=False, ncols=len(runs), loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize="small")
    return figure


def cost_against_quality(runs: Sequence[Run]) -> Figure:
    """ROUGE-L against seconds of training and against the share of weights trained."""
    figure, (left, right) = _axes(2, width=4.8)
    for run in runs:
        style = {"color": _colour(run), "marker": MARKERS.get(run.name, "o"), "edgecolors": "black", "s": 70}
        left.scatter(run.metrics.get("train_seconds", 0), run.metrics["rougeL"], label=label(run), **style)
        share = run.metrics["trainable_parameters"] / run.metrics["parameters"]
        right.scatter(100 * share, run.metrics["rougeL"], **style)
    left.set(xlabel="training (s)", ylabel="ROUGE-L", title="Time")
    right.set(xlabel="weights trained (%)", ylabel="ROUGE-L", title="Weights")
    right.set_xscale("symlog", linthresh=0.1)
    right.set_xlim(left=-0.01)
    left.legend(frameon=False, fontsize="small")
    return figure
