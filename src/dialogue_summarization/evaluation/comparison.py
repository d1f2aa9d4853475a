"""Tables that compare systems: where they stand, how sure a difference is, and against which reference.

A difference counts when its p-value, corrected for the number of pairs (Holm), is below 0.05. "As good as" counts when
the equivalence test says so, never because no difference was shown.
"""

import itertools
from collections.abc import Sequence

import datasets
import pandas as pd

from ..report import HEADINGS, display_name, with_interval
from ..rouge import TYPES
from ..runs import Run
from .files import published, published_scores
from .statistics import MARGIN, compare, holm
from .systems import KINDS, System, baselines, from_columns, human_baseline, of_runs

LEVEL = 0.05


def all_systems(runs: Sequence[Run], test: datasets.Dataset, folder: str | None = None) -> list[System]:
    """Humans, published systems (on DialogSum, where their predictions are in `folder`), runs and baselines."""
    human = human_baseline(test)
    others = published(test, folder) if folder else []
    return [*([human] if human else []), *others, *of_runs(runs, test), *baselines(test)]


def record_sources(runs: Sequence[Run], names: Sequence[str]) -> pd.DataFrame:
    """A row per run: where its record comes from; for a run that is missing, which notebook makes it."""
    notebooks, rows = {"zero-shot": "01", "full": "02"}, {}
    for run in runs:
        anew = f"reference of {run.date}, committed; notebook {notebooks.get(run.name, '03')} makes it anew"
        rows[display_name(run)] = anew if run.is_reference else f"made here on {run.date}"
    for name in names:
        if name not in {run.name for run in runs}:
            rows[name] = f"missing: notebook {notebooks.get(name, '03')} makes it"
    return pd.DataFrame({"record": rows}).rename_axis("run")


def leaderboard(systems: Sequence[System], test: datasets.Dataset | None = None) -> pd.DataFrame:
    """A row per system, by kind and then best first: ROUGE with intervals, and the share of the human gap.

    Of several seeds their number is followed by the lowest and the highest ROUGE-L. The human gap is the one in ROUGE-L
    from the best baseline (0 %) to the humans (100 %); there is none where the humans do not stand clearly above. With
    `test`, published systems that are not among `systems` are rows too, as they were scored once.
    """
    rows = [{"system": one.name, "kind": one.kind, "seeds": _seeds(one), **one.columns()} for one in systems]
    scores = pd.DataFrame(rows).set_index("system")
    if test is not None:
        recorded = published_scores(test).drop(index=scores.index, errors="ignore")
        scores = pd.concat([scores, recorded.assign(kind="published", seeds="–")])
    scores = scores.sort_values("rougeL", ascending=False, kind="stable")
    scores = scores.sort_values("kind", key=lambda kinds: kinds.map(KINDS.index), kind="stable")
    table = scores[["kind"]].copy()
    for name in TYPES:
        table[HEADINGS[name]] = [from_columns(row, name) for _, row in scores.iterrows()]
    table["seeds"] = scores["seeds"]
    humans, copies = ([one for one in systems if one.kind == kind] for kind in ("human", "baseline"))
    if humans and copies:
        start = max(copies, key=lambda one: one.score("rougeL"))
        gap = compare(humans[0].scores("rougeL"), start.scores("rougeL"))
        if gap.low > 0:
            above = scores["rougeL"] - scores.loc[start.name, "rougeL"]
            table["share of the human gap"] = (above / gap.mean).map("{:.0%}".format)
    return table


def _seeds(one: System) -> str:
    """How many, with the lowest and the highest score: `3: 0.363 to 0.368`."""
    scores = one.scores("rougeL").mean(axis=1)
    if len(scores) > 1:
        return f"{len(scores)}: {scores.min():.3f} to {scores.max():.3f}"
    return "1" if one.kind == "run" else "–"


def best_references(systems: Sequence[System], measure: str) -> pd.DataFrame:
    """A row per system: the mean over references, the best of all, and the best of all but one, as humans have them."""
    rows = {}
    for one in systems:
        row = {"mean": one.f1, "best reference": one.best, "best of all but one": one.best_of_others}
        rows[one.name] = {
            name: "–" if f1 is None else f"{f1[:, :, TYPES.index(measure)].mean():.3f}" for name, f1 in row.items()
        }
    return pd.DataFrame(rows).T.rename_axis("system")


def pairwise(systems: Sequence[System], measure: str) -> pd.DataFrame:
    """A row per pair, the better one first: the difference with its interval, p-values, and what they allow to say.

    Holm's correction is for the number of pairs. The p-value of two one-sided tests (TOST) is of a difference in
    ROUGE-1 of the margin or more, and corrected too. With 80 % power the minimum detectable effect is shown.
    """
    pairs = list(itertools.combinations(sorted(systems, key=lambda one: -one.score(measure)), 2))
    gaps = [compare(one.scores(measure), other.scores(measure)) for one, other in pairs]
    rouge1 = [compare(one.scores("rouge1"), other.scores("rouge1")) for one, other in pairs]
    corrected, equivalent = holm([gap.p for gap in gaps]), holm([gap.p_equivalent for gap in rouge1])
    rows = [
        {
            "pair": f"{one.name} − {other.name}",
            f"{HEADINGS[measure]} difference": with_interval(gap.mean, (gap.low, gap.high), "+.3f"),
            "p": _p(gap.p),
            "p (Holm)": _p(p),
            f"p (TOST, ROUGE-1 ± {MARGIN:g})": _p(p_equivalent),
            "minimum detectable effect": f"{gap.minimum_detectable:.3f}",
            "seeds": f"{len(one.f1)}, {len(other.f1)}",
            "verdict": verdict(p, p_equivalent),
        }
        for (one, other), gap, p, p_equivalent in zip(pairs, gaps, corrected, equivalent, strict=True)
    ]
    return pd.DataFrame(rows).set_index("pair") if rows else pd.DataFrame(columns=["verdict"])


def planned_comparison(systems: Sequence[System]) -> pd.DataFrame:
    """Whether recommended LoRA is as good as full fine-tuning in ROUGE-1; no row where one of the two is missing.

    It is the question that the study was made for: one pair, named before the runs were made, so that its p-value needs
    no correction for others.
    """
    names = ("full", "lora-balanced")
    both = [one for one in systems if one.kind == "run" and one.name.removesuffix(" (reference)") in names]
    return pairwise(both, "rouge1")


def verdict(p: float, p_equivalent: float) -> str:
    """What two corrected p-values allow to say."""
    if p < LEVEL:
        return "differ, by less than the margin" if p_equivalent < LEVEL else "differ"
    return "as good as each other" if p_equivalent < LEVEL else "not distinguishable"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
