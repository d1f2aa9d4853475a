"""Where systems stand, and how sure their differences are: the tables and the figure that compare them."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import Dataset
from matplotlib.figure import Figure

from ..figures import COLOURS, MARKERS, panels
from ..report import HEADINGS, with_interval
from ..rouge import TYPES
from ..runs import Run
from .statistics import compare, holm, verdict
from .systems import KINDS, System, baselines, from_columns, human_baseline, of_runs, published, published_scores

DETAILS = ("form only", "above form", "training dialogues", "cut to fit", "validation loss", "seeds")


def all_systems(
    runs: Sequence[Run], test: Dataset, folder: str | None = None, train: Dataset | None = None
) -> list[System]:
    """References, published systems (on DialogSum, where their predictions are in `folder`), runs and baselines."""
    others = [*human_baseline(test), *(published(test, folder) if folder else [])]
    return [*others, *of_runs(runs, test), *baselines(test, train)]


def leaderboard(systems: Sequence[System], test: Dataset | None = None) -> pd.DataFrame:
    """A row per system, by kind and then best first: ROUGE with intervals, and of runs what they learnt from.

    "Form only" is ROUGE-1 against other dialogues' references, and "above form" how much more the own ones give.
    Validation loss is before training, where it was measured, and after; seeds come with the range of their ROUGE-L.
    "Gap closed" is in ROUGE-L, from the best baseline (0 %) to the references (100 %), if these are clearly above.
    With `test`, published systems that are not among `systems` are rows too, as they were scored once.
    """
    rows = [{"system": one.name, "kind": one.kind, **one.columns(), **_details(one)} for one in systems]
    scores = pd.DataFrame(rows).set_index("system")
    if test is not None:
        recorded = published_scores(test).drop(index=scores.index, errors="ignore")
        scores = pd.concat([scores, recorded.assign(kind="published")])
    scores = scores.sort_values("rougeL", ascending=False, kind="stable")
    scores = scores.sort_values("kind", key=lambda kinds: kinds.map(KINDS.index), kind="stable")
    table = scores[["kind"]].copy()
    for name in TYPES:
        table[HEADINGS[name]] = [from_columns(row, name) for _, row in scores.iterrows()]
    for heading in DETAILS:
        if heading in scores:
            table[heading] = scores[heading].fillna("–")
    references, copies = ([one for one in systems if one.kind == kind] for kind in ("reference", "baseline"))
    if references and copies:
        start = max(copies, key=lambda one: one.score("rougeL"))
        gap = compare(references[0].scores("rougeL"), start.scores("rougeL"))
        if gap.low > 0 and gap.minimum_detectable > 0:
            above = scores["rougeL"] - scores.loc[start.name, "rougeL"]
            table["gap closed"] = (above / gap.mean).map("{:.0%}".format)
    return table


def _details(one: System) -> dict[str, str]:
    details = {}
    if not np.isnan(one.form_only):
        details = {"form only": f"{one.form_only:z.3f}", "above form": f"{one.score('rouge1') - one.form_only:z.3f}"}
    if one.kind == "run":
        scores = one.scores("rougeL").mean(axis=1)
        spread = f": {scores.min():.3f} to {scores.max():.3f}" if len(scores) > 1 else ""
        details["seeds"] = f"{len(scores)}{spread}"
    if one.runs:
        first = one.runs[0]
        details["training dialogues"] = f"{first.config.dialogues['train'] if first.config.settings else 0:,}"
        if cut := first.metrics.get("truncated_dialogues"):
            details["cut to fit"] = f"{cut} of {first.metrics['dialogues']}"
        losses = first.log.dropna(subset="eval_loss") if "eval_loss" in first.log else pd.DataFrame()
        if len(losses) and one.kind == "run":  # the adapter's is of other data
            before = f"{losses['eval_loss'].iloc[0]:.2f} → " if losses["step"].iloc[0] == 0 else ""
            details["validation loss"] = f"{before}{losses['eval_loss'].iloc[-1]:.2f}"
    return details


def pairwise(systems: Sequence[System], measure: str) -> pd.DataFrame:
    """A row per pair, the better one first: its difference, tests of it and of equivalence in ROUGE-1, verdict.

    Holm's correction is for the number of pairs, in both tests. A missing difference is never called "as good as".
    """
    pairs = list(itertools.combinations(sorted(systems, key=lambda one: -one.score(measure)), 2))
    gaps = [compare(one.scores(measure), other.scores(measure)) for one, other in pairs]
    rouge1 = [compare(a.scores("rouge1"), b.scores("rouge1"), same=a.texts == b.texts != ()) for a, b in pairs]
    corrected, equivalent = holm([gap.p for gap in gaps]), holm([gap.p_equivalent for gap in rouge1])
    rows = [
        {
            "pair": f"{one.name} − {other.name}",
            f"{HEADINGS[measure]} difference": with_interval(gap.mean, (gap.low, gap.high), "+.3f"),
            "p": _p(gap.p),
            "p (Holm)": _p(p),
            "p, equivalence test": _p(p_equivalent),
            "smallest detectable difference": f"{gap.minimum_detectable:.3f}".replace("nan", "–"),
            "seeds": f"{len(one.f1)}, {len(other.f1)}",
            "verdict": verdict(p, p_equivalent, can_say=gap.minimum_detectable > 0),
        }
        for (one, other), gap, p, p_equivalent in zip(pairs, gaps, corrected, equivalent, strict=True)
    ]
    return pd.DataFrame(rows, columns=None if rows else ["pair", "verdict"]).set_index("pair")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def planned_comparison(systems: Sequence[System]) -> pd.DataFrame:
    """Whether `lora-balanced` is as good as `full` in ROUGE-1: the one pair named before the runs were made."""
    methods = [one.name.removesuffix(" (reference)").rpartition(": ")[2] for one in systems]
    planned = [one for one, name in zip(systems, methods, strict=True) if name in ("full", "lora-balanced")]
    return pairwise(planned, "rouge1")


def standings(systems: Sequence[System], measure: str = "rougeL", committed: Sequence[Run] = ()) -> Figure:
    """Every system's score with its 95 % interval, the best on top; committed runs as grey dots."""
    markers = MARKERS | {"reference": "*", "published": "P", "baseline": "x"}
    colours = COLOURS | {"reference": "black", "published": "#6f6f6f", "baseline": "#9a9a9a"}
    ranked = sorted(systems, key=lambda one: one.score(measure))
    figure, (ax,) = panels(width=7.5, height=0.28 * len(ranked) + 1)
    for place, one in enumerate(ranked):
        name = one.runs[0].name if one.runs else one.kind
        dots = [run.metrics[measure] for run in committed if run.name == name and one.kind == "run"]
        ax.plot(dots, [place] * len(dots), "o", color="#b0b0b0", markersize=6)
        ax.plot(one.interval(measure), [place, place], "k|-")
        ax.plot(one.score(measure), place, markers.get(name, "o"), color=colours.get(name, "#3f7f5f"), markersize=8)
    ax.set_yticks(range(len(ranked)), [f"{one.name} [{one.kind}]" for one in ranked])
    ax.set(xlabel=f"{HEADINGS[measure]}, with 95 % interval over dialogues")
    ax.grid(axis="x", alpha=0.3)
    return figure
