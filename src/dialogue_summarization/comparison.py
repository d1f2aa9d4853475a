"""Tables and sentences that compare systems: where they stand, how sure a difference is, and against which reference.

A difference counts when its p-value, corrected for the number of pairs (Holm), is below 0.05. "As good as" counts when
the equivalence test says so, never because a difference was not found.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import datasets
import numpy as np
import pandas as pd

from . import published
from .report import HEADINGS, seeds, with_interval
from .rouge import TYPES
from .runs import Run
from .significance import MARGIN, Difference, compare, holm
from .systems import KINDS, System, baselines, best_baseline, human_line, of_runs

LEVEL = 0.05


def everyone(runs: Sequence[Run], test: datasets.Dataset, folder: str | None = None) -> list[System]:
    """Humans, published systems (on DialogSum, where their predictions are), runs and baselines."""
    human = human_line(test)
    return [*([human] if human else []), *published.load(test, folder), *of_runs(runs, test), *baselines(test)]


def standings(systems: Sequence[System], test: datasets.Dataset | None = None) -> pd.DataFrame:
    """A row a system, by kind and then best first: ROUGE with intervals, and the share of the way to the humans.

    Where there are several seeds their number is followed by the lowest and the highest ROUGE-L.

    The share is of ROUGE-L, 0 % being the best baseline and 100 % the humans; it is left out where the humans do not
    stand clearly above the baselines, since there is no way to go then. With `test` published systems whose
    predictions are not here are rows too, from the committed table.
    """
    human = next((one for one in systems if one.kind == "human"), None)
    start = best_baseline(systems, "rougeL")
    rows = [_standing(one) for one in systems]
    if test is not None and published.is_theirs(test) and not any(one.kind == "published" for one in systems):
        rows += [_recorded(name, row) for name, row in published.recorded().iterrows()]
    table = pd.DataFrame(rows)
    if human is not None and (way := compare(human.scores("rougeL"), start.scores("rougeL"))).low > 0:
        table["way to humans"] = [f"{(score - start.score('rougeL')) / way.mean:.0%}" for score in table["score"]]
    order = [KINDS.index(kind) for kind in table["what"]]
    table = table.iloc[np.lexsort([-table["score"], order])]
    return table.drop(columns="score").set_index("system")


def scores(systems: Sequence[System]) -> pd.DataFrame:
    """A row a system: each measure with its interval."""
    return pd.DataFrame(map(_standing, systems)).set_index("system").drop(columns=["what", "score"])


def _standing(one: System) -> dict[str, object]:
    row: dict[str, object] = {"system": one.name, "what": one.kind, "score": one.score("rougeL")}
    row |= {HEADINGS[name]: with_interval(one.score(name), one.interval(name)) for name in TYPES}
    return row | {"seeds": seeds(one.scores("rougeL").mean(axis=1)) if one.kind == "run" else "–"}


def _recorded(name: str, row: pd.Series) -> dict[str, object]:
    found = {HEADINGS[kind]: with_interval(row[kind], (row[f"{kind}_low"], row[f"{kind}_high"])) for kind in TYPES}
    return {"system": f"{name} (recorded)", "what": "published", "score": row["rougeL"], **found, "seeds": "–"}


def references(systems: Sequence[System], measure: str) -> pd.DataFrame:
    """A row a system: the mean over references, the best one, and each apart with its rank among the same kind.

    `best of all but one` puts systems on a level with humans, who are scored on one reference less. For humans `1`, `2`
    ... are each one's own score against the others.
    """
    place, rows = TYPES.index(measure), []
    for one in systems:
        row = {"system": one.name, "mean": f"{one.score(measure):.3f}"}
        row["best"] = "–" if one.best is None else f"{one.best[:, :, place].mean():.3f}"
        row["best of all but one"] = (
            "–" if one.best_of_others is None else f"{one.best_of_others[:, :, place].mean():.3f}"
        )
        for number, value in one.by_reference[measure].items():
            if one.kind == "human":
                row[f"{number}"] = f"{value:.3f}"
                continue
            same = [other.by_reference[measure].loc[number] for other in systems if other.kind == one.kind]
            row[f"{number + 1}"] = f"{value:.3f} ({1 + sum(other > value for other in same)})"
        rows.append(row)
    return pd.DataFrame(rows).set_index("system").fillna("–")


def differences(systems: Sequence[System], measure: str) -> list[tuple[System, System, Difference, float, float]]:
    """Every pair, the better one first: the two, their difference, and both p-values corrected over the pairs.

    The first p-value is of no difference in `measure`. The second is of the two not being equivalent in ROUGE-1.
    """
    return list(_differences(tuple(systems), measure))


@lru_cache(maxsize=16)
def _differences(systems: tuple[System, ...], measure: str) -> list[tuple[System, System, Difference, float, float]]:
    """Remembered, since a table, sentences and the resolution are of the same pairs."""
    ranked = sorted(systems, key=lambda one: -one.score(measure))
    couples = list(itertools.combinations(ranked, 2))
    found = [compare(one.scores(measure), other.scores(measure)) for one, other in couples]
    same = [compare(one.scores("rouge1"), other.scores("rouge1")).p_equivalent for one, other in couples]
    corrected = zip(holm([difference.p for difference in found]), holm(same), strict=True)
    return [(*pair, gap, *values) for pair, gap, values in zip(couples, found, corrected, strict=True)]


def pairwise(systems: Sequence[System], measure: str) -> pd.DataFrame:
    """A row a pair: difference with interval, p-values, and what that allows to say."""
    rows = [
        {
            "pair": f"{one.name} over {other.name}",
            f"{HEADINGS[measure]} difference": with_interval(gap.mean, (gap.low, gap.high), "+.3f"),
            "p": _p(gap.p),
            "p (Holm)": _p(p),
            f"p of not equivalent (ROUGE-1, {MARGIN:g})": _p(same),
            "80 % power from": f"{gap.detectable:.3f}",
            "verdict": verdict(p, same),
        }
        for one, other, gap, p, same in differences(systems, measure)
    ]
    return pd.DataFrame(rows).set_index("pair") if rows else pd.DataFrame(columns=["verdict"])


def verdict(p: float, p_equivalent: float) -> str:
    """What two corrected p-values allow to say."""
    if p < LEVEL:
        return "differ, by less than the margin" if p_equivalent < LEVEL else "differ"
    return "as good as each other" if p_equivalent < LEVEL else "not distinguishable"


def sentences(systems: Sequence[System], measure: str) -> list[str]:
    """Each pair in a plain sentence."""
    lines = []
    for one, other, gap, p, same in differences(systems, measure):
        name = HEADINGS[measure]
        what = "beats" if p < LEVEL else "is above"
        counts = len(one.mean), len(other.mean)
        seeds = f"over {counts[0]} and {counts[1]} seeds" if max(counts) > 1 else "these two alone, one seed each"
        if {one.kind, other.kind} != {"run"}:
            seeds = "these summaries"
        lines.append(
            f"{one.name} {what} {other.name} by {gap.mean:.3f} {name}, interval {_signed(gap.low)} to "
            f"{_signed(gap.high)}, p {_p(p)}: {verdict(p, same)} ({seeds})."
        )
    return lines


def planned(systems: Sequence[System]) -> str:
    """Whether recommended LoRA is as good as full fine-tuning, in a sentence; empty where one of the two is missing.

    It is the question that the study was made for: one pair, named before the runs were made, so that its p-value needs
    no correction for others.
    """
    by_method = {one.name.removesuffix(" (reference)"): one for one in systems if one.kind == "run"}
    if not {"full", "lora-balanced"} <= set(by_method):
        return ""
    lora, full = by_method["lora-balanced"], by_method["full"]
    gap = compare(lora.scores("rouge1"), full.scores("rouge1"))
    found = "as good as" if gap.p_equivalent < LEVEL else "not shown to be as good as"
    return (
        f"{lora.name} is {found} {full.name} within {MARGIN:g} ROUGE-1: difference {_signed(gap.mean)}, 95 % interval "
        f"{_signed(gap.low)} to {_signed(gap.high)}, p {_p(gap.p_equivalent)} by two one-sided tests "
        f"(seeds: {len(lora.mean)} and {len(full.mean)})."
    )


def resolution(systems: Sequence[System], measure: str) -> str:
    """The smallest difference that this test set can show, in a sentence."""
    found = [gap.detectable for _, _, gap, _, _ in differences(systems, measure)]
    if not found:
        return "One system: there is nothing to compare."
    count = systems[0].mean.shape[1]
    return (
        f"With {count} test dialogues a true difference of {np.median(found):.3f} {HEADINGS[measure]} is found 4 times "
        f"of 5 (median over the pairs, {min(found):.3f} to {max(found):.3f}); smaller ones mostly go unseen."
    )


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")
