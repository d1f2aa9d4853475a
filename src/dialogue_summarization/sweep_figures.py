"""Figures of a sweep: over learning rate, over rank, over the number of training dialogues.

Some points have several seeds, each with its own sample of dialogues. Lines go through the seed that every point has,
so that they compare; bars go from the lowest to the highest of all seeds.
"""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .figures import COLOURS, MARKERS, panels
from .report import HEADINGS
from .sweep_claims import best_rates
from .sweep_points import ALPHA, TARGETS

RANK_MARKERS = ("v", "^", "D", "o", "P", "X")
_STYLES = (("#f0b94a", "v"), ("#d9603b", "D"), ("#7d1d3f", "^"), ("#3f7f5f", "o"))
TARGET_STYLES = dict(zip(TARGETS, _STYLES, strict=True))
MEASURES = {"eval_loss": "validation loss (nats a token)", "rougeL": "validation ROUGE-L"}


def over_learning_rate(table: pd.DataFrame, targets: str = "all linear") -> Figure:
    """Validation loss and ROUGE-L over the learning rate, a line a rank and one for full fine-tuning."""
    figure, both = panels(2, width=5.2)
    chosen = table[(table["targets"] == targets) & (table["alpha"] == ALPHA)]
    ranks = sorted(chosen["rank"].unique())
    shades = plt.get_cmap("YlOrRd")(np.linspace(0.3, 0.95, max(len(ranks), 1)))
    lines = [(f"rank {rank:.0f}", chosen[chosen["rank"] == rank], shade, RANK_MARKERS[number % len(RANK_MARKERS)])
             for number, (rank, shade) in enumerate(zip(ranks, shades, strict=False))]  # fmt: skip
    lines.append(("full", table[table["method"] == "full"], COLOURS["full"], MARKERS["full"]))
    for ax, (measure, title) in zip(both, MEASURES.items(), strict=True):
        for name, points, colour, marker in lines:
            if len(points):
                _line(ax, points, "learning_rate", measure, label=name, color=colour, marker=marker)
        ax.set(xscale="log", xlabel="learning rate", ylabel=title)
    both[0].set_title(f"LoRA on {targets} layers, and full fine-tuning")
    _legend_beside(both[1])
    return figure


def over_rank(table: pd.DataFrame) -> Figure:
    """Validation loss and ROUGE-L over the rank, each point at its best rate by loss, a line a set of targets.

    A hollow marker: the best rate is the lowest or highest that was tried. The band is full's, of all seeds.
    """
    figure, both = panels(2, width=5.2)
    best = best_rates(table)
    full = best[best["method"] == "full"]
    for ax, (measure, title) in zip(both, MEASURES.items(), strict=True):
        for targets, (colour, marker) in TARGET_STYLES.items():
            points = best[(best["targets"] == targets) & (best["alpha"] == ALPHA)]
            if len(points):
                _line(ax, points, "rank", measure, label=targets, color=colour, marker=marker)
                ends = _first(points)[lambda chosen: chosen["edge"]]
                ax.plot(ends["rank"], ends[measure], marker, color="white", markeredgecolor=colour, zorder=3)
        if len(full):
            ax.axhline(_first(full)[measure].mean(), color=COLOURS["full"], linestyle="--", label="full")
            ax.axhspan(full[measure].min(), full[measure].max(), color=COLOURS["full"], alpha=0.1)
        ranks = sorted(best["rank"].dropna().unique())
        ax.set(xscale="log", xlabel="rank", ylabel=title)
        ax.set_xticks(ranks, [f"{rank:.0f}" for rank in ranks])
        ax.minorticks_off()
    both[0].set_title("Each at the best rate tried (hollow: the last of them)")
    _legend_beside(both[1])
    return figure


def over_data(shares: pd.DataFrame, measure: str = "rougeL") -> Figure:
    """Test ROUGE over the number of training dialogues, with 95 % intervals; `shares` is a `sweep_report.shares`."""
    figure, (ax,) = panels()
    for number, (name, points) in enumerate(shares.groupby("method", sort=False)):
        errors = np.abs(points[[f"{measure}_low", f"{measure}_high"]].to_numpy().T - points[measure].to_numpy())
        beside = points["dialogues"] * 1.04**number  # or bars would lie on one another
        ax.errorbar(beside, points[measure], yerr=errors, label=name, capsize=3,
                    color=COLOURS.get(name, "#3f7f5f"), marker=MARKERS.get(name, "o"))  # fmt: skip
    ax.set(xscale="log", xlabel="training dialogues", ylabel=f"test {HEADINGS[measure]}, with 95 % interval")
    counts = sorted(shares["dialogues"].unique())
    ax.set_xticks(counts, [f"{count:,}" for count in counts])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return figure


def _legend_beside(ax: plt.Axes) -> None:
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _line(ax: plt.Axes, points: pd.DataFrame, over: str, measure: str, **style: object) -> None:
    line = _first(points).set_index(over)[measure].sort_index()
    seeds = points.groupby(over)[measure]
    errors = np.stack([line - seeds.min()[line.index], seeds.max()[line.index] - line])
    ax.errorbar(line.index, line, yerr=errors, capsize=3, markeredgecolor="black", markeredgewidth=0.5, **style)


def _first(points: pd.DataFrame) -> pd.DataFrame:
    return points[points["seed"] == points["seed"].min()]
