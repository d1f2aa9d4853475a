"""Figures of the evaluation: where systems stand, and what quality costs. Colours and markers are the core's."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..figures import MARKERS, colour_of, panels
from ..report import COST_COLUMNS, HEADINGS, cost_measures, display_name
from ..runs import Run
from .systems import System

STYLES = {"human": ("*", "black"), "published": ("P", "#6f6f6f"), "baseline": ("x", "#9a9a9a")}  # marker, colour


def leaderboard(systems: Sequence[System], measure: str = "rougeL") -> Figure:
    """Every system's score with its 95 % interval, from the baselines to the humans."""
    ranked = sorted(systems, key=lambda one: one.score(measure))
    figure, (ax,) = panels(width=7.5, height=0.28 * len(ranked) + 1)
    for place, one in enumerate(ranked):
        run = one.runs[0] if one.runs else None
        marker, colour = (MARKERS.get(run.name, "o"), colour_of(run)) if run else STYLES.get(one.kind, ("o", "#3f7f5f"))
        score = one.score(measure)
        errors = np.abs(np.array(one.interval(measure)) - score)[:, None]
        ax.errorbar(score, place, xerr=errors, fmt=marker, color=colour, markersize=8, capsize=3, ecolor="black")
    ax.set_yticks(range(len(ranked)), [f"{one.name} [{one.kind}]" for one in ranked])
    ax.set(xlabel=f"{HEADINGS[measure]}, with 95 % interval over dialogues")
    ax.grid(axis="x", alpha=0.3)
    return figure


def cost_against_quality(runs: Sequence[Run], price_per_hour: float | None = None) -> Figure:
    """ROUGE-L against each cost that was measured: time, memory, energy, price, weights trained, MB to ship."""
    costs = pd.DataFrame([cost_measures(run, price_per_hour) for run in runs])
    shown = [key for key in COST_COLUMNS if key in costs and costs[key].max() > 0]
    figure, axes = panels(3, width=3, height=2.6, rows=math.ceil(len(shown) / 3), sharey=True)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax, key in zip(axes, shown, strict=False):
        for run, cost in zip(runs, costs[key], strict=True):  # NaN, which is unknown, is not drawn
            style = {"color": colour_of(run), "marker": MARKERS.get(run.name, "o"), "edgecolors": "black", "s": 70}
            ax.scatter(cost, run.metrics["rougeL"], label=display_name(run), **style)
        lowest, highest = costs[key][costs[key] > 0].min(), costs[key].max()
        if highest > 20 * lowest:
            ax.set_xscale("symlog", linthresh=lowest)
            ax.set_xlim(left=-0.3 * lowest)
        else:
            ax.set_xlim(0, 1.1 * highest)
        ax.set(xlabel=COST_COLUMNS[key][0])
    figure.supylabel("ROUGE-L")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, ncols=3, loc="outside lower center", fontsize="small")
    return figure
