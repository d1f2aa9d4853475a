"""Figures from data and runs: labelled axes, readable in greyscale, the same colour and marker for a run everywhere."""

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import costs
from .base_models import title
from .report import HEADINGS, label
from .runs import Run
from .scaling import Comparison
from .systems import System

# Lightness differs as well as hue.
COLOURS = {
    "zero-shot": "#9a9a9a",
    "full": "#1b3a6b",
    "lora-efficient": "#f0b94a",
    "lora-balanced": "#d9603b",
    "lora-high-performance": "#7d1d3f",
}
MARKERS = {"zero-shot": "o", "full": "s", "lora-efficient": "v", "lora-balanced": "D", "lora-high-performance": "^"}


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


def lengths(splits: Mapping[str, datasets.Dataset]) -> Figure:
    """How long dialogues and references are, in words."""
    figure, (left, right) = panels(2, width=4.8)
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
    figure, (ax,) = panels()
    for run in runs:
        if run.log.empty:
            continue
        trained, validated = run.log.dropna(subset="loss"), run.log.dropna(subset="eval_loss")
        ax.plot(trained["step"], trained["loss"], color=colour_of(run), alpha=0.75, linewidth=1.3, label=label(run))
        ax.plot(validated["step"], validated["eval_loss"], color=colour_of(run), marker=MARKERS.get(run.name, "o"),
                linestyle="--", markeredgecolor="white")  # fmt: skip
    ax.set(xlabel="step of the optimizer", ylabel="cross-entropy a token (nats)",
           title="Loss: training (lines), validation (markers)")  # fmt: skip
    ax.legend(frameon=False)
    return figure


def cost_against_quality(runs: Sequence[Run], price_an_hour: float | None = None) -> Figure:
    """ROUGE-L against each cost that was measured: time, memory, energy, price, weights trained, megabytes to ship."""
    found = {label(run): costs.measures(run, price_an_hour) for run in runs}
    shown = [key for key in costs.COLUMNS if any(entry.get(key) for entry in found.values())]
    figure, axes = panels(3, width=3, height=2.6, rows=-(-len(shown) // 3), sharey=True)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax, key in zip(axes, shown, strict=False):
        for run in runs:
            if key in found[label(run)]:
                style = {"color": colour_of(run), "marker": MARKERS.get(run.name, "o"), "edgecolors": "black", "s": 70}
                ax.scatter(found[label(run)][key], run.metrics["rougeL"], label=label(run), **style)
        values = [entry[key] for entry in found.values() if entry.get(key)]
        if max(values) > 20 * min(values):
            ax.set_xscale("symlog", linthresh=min(values))
            ax.set_xlim(left=-0.3 * min(values))
        else:
            ax.set_xlim(0, 1.1 * max(values))
        ax.set(xlabel=costs.COLUMNS[key][0])
    for ax in axes[::3]:
        ax.set(ylabel="ROUGE-L")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, ncols=len(names), loc="outside lower center", fontsize="small")
    return figure


def standings(systems: Sequence[System], measure: str = "rougeL") -> Figure:
    """Every system's score with its 95 % interval, from the baselines to the humans."""
    ranked = sorted(systems, key=lambda one: one.score(measure))
    figure, (ax,) = panels(width=7.5, height=0.28 * len(ranked) + 1)
    for place, one in enumerate(ranked):
        value, bounds = one.score(measure), np.array(one.interval(measure))
        style = {"human": ("*", "black"), "published": ("P", "#6f6f6f"), "baseline": ("x", "#9a9a9a")}
        run = one.runs[0] if one.runs else None
        marker, colour = (MARKERS.get(run.name, "o"), colour_of(run)) if run else style.get(one.kind, ("o", "#3f7f5f"))
        errors = np.abs(bounds - value)[:, None]
        ax.errorbar(value, place, xerr=errors, fmt=marker, color=colour, markersize=8, capsize=3, ecolor="black")
    ax.set_yticks(range(len(ranked)), [f"{one.name} [{one.kind}]" for one in ranked])
    ax.set(xlabel=f"{HEADINGS[measure]}, with 95 % interval over dialogues")
    ax.grid(axis="x", alpha=0.3)
    return figure


def several_gpus(found: Sequence[Comparison]) -> Figure:
    """Samples a second on one GPU and on several, beside the prediction; and the losses of both, on top of one another.

    Of those comparisons that one GPU made with the same effective batch; losses in a panel a model.
    """
    found = [each for each in found if each.times is not None]
    by_model: dict[str, list[Comparison]] = {}
    for each in found:
        by_model.setdefault(each.several["model"], []).append(each)
    figure, (first, *others) = panels(width=7.5, height=0.3 * len(found) + 2.2, rows=1 + len(by_model))
    _speed(first, found)
    for ax, (model, some) in zip(others, by_model.items(), strict=True):
        _losses(ax, some)
        ax.set(title=f"{title(model)}: loss on 1 GPU (lines) and several (markers)",
               xlabel="step of the optimizer", ylabel="cross-entropy a token (nats)")  # fmt: skip
    return figure


def _speed(ax: plt.Axes, found: Sequence[Comparison]) -> None:
    places = np.arange(len(found))
    counts = sorted({each.several["gpus"] for each in found})
    for offset, colour, ink, name, records in (
        (-0.19, "#a9c0e0", "black", "1 GPU", [each.one for each in found]),
        (0.19, "#1b3a6b", "white", f"{' or '.join(map(str, counts))} GPUs", [each.several for each in found]),
    ):
        bars = ax.barh(places + offset, [one["samples_per_second"] for one in records], 0.36, color=colour, label=name)
        ax.bar_label(bars, fmt="{:.0f}", label_type="center", fontsize="small", color=ink)
    predicted = [(each.predicted, place + 0.19) for place, each in enumerate(found) if each.predicted]
    if predicted:
        ax.scatter(*zip(*predicted, strict=True), marker="D", color="#f0b94a", edgecolors="black", label="predicted",
                   zorder=3)  # fmt: skip
    ax.set_yticks(places, [each.name.replace(", ", "\n", 1) for each in found])
    ax.set(xlabel="samples a second", title="Speed, the same dialogues a step")
    ax.invert_yaxis()
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _losses(ax: plt.Axes, found: Sequence[Comparison]) -> None:
    for each in found:
        method, plain = each.several["method"], not each.several["fast"]
        style = {"color": COLOURS.get(method, "#3f7f5f")}
        points = {"linestyle": "none", "marker": MARKERS.get(method, "o"), "fillstyle": "none" if plain else "full"}
        for record, more in ((each.one, {"linestyle": "--" if plain else "-"}), (each.several, points)):
            steps = record["steps_a_loss"] * (1 + np.arange(len(record["losses"])))
            label = each.name.partition(", ")[2] if record is each.one else None
            ax.plot(steps, record["losses"], label=label, **style, **more)
    ax.legend(frameon=False)
