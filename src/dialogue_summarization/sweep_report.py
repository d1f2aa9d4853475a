"""What a sweep's records of the test split say: tables, and sentences that are computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from . import runs, sweep_records
from .comparison import LEVEL, verdict
from .report import HEADINGS, with_interval
from .rouge import TYPES
from .significance import compare, holm, resampled_means
from .systems import System, of_runs

BALANCED = "lora-balanced"
VARIANTS = ("dora", "rslora", "pissa", "lora-plus")  # LoRA with one thing changed, on the same layers
NEAR = 0.02  # of plain LoRA's score: "within 1 to 2 %" (Lee et al. 2026, arXiv 2602.04998)


def load(folder: Path, name: str) -> pd.DataFrame:
    """The points of a group and of its repeats, those that diverged left out. Raises `RecordError`."""
    tables = [sweep_records.read(folder / f"{file}.csv") for file in (name, f"{name}-repeats")]
    table = pd.concat([one for one in tables if len(one)] or tables[:1], ignore_index=True)
    return table[table["diverged"] == 0].reset_index(drop=True)


def tested(folder: Path, name: str) -> list[runs.Run]:
    """The records of the test split that a group and its repeats left. Raises `RecordError`."""
    groups = (folder / name, folder / f"{name}-repeats")
    places = sorted(path for group in groups for path in group.glob("*/*/seed-*/metrics.json"))
    return [runs.read(path.parent) for path in places if "." not in path.parent.name]


def methods(folder: Path, test: datasets.Dataset) -> pd.DataFrame:
    """A row a method, best first: its best rate of three, test scores, distance to balanced LoRA, and costs.

    A rate marked `<` or `>` is the lowest or highest that was tried: a better one may lie beyond. The distance is in
    ROUGE-L, in per cent of balanced LoRA's; p-values are corrected for the number of methods (Holm).
    """
    systems = of_runs(tested(folder, "methods"), test)
    points = load(folder, "methods")
    rivals = against_balanced(systems)
    rows = []
    for one in sorted(systems, key=lambda one: -one.score("rougeL")):
        [name] = {run.name for run in one.runs}
        rate = one.runs[0].config.settings["learning_rate"]
        tried = points.loc[points["method"] == name, "learning_rate"]
        same = points[(points["method"] == name) & np.isclose(points["learning_rate"], rate) & (points["seed"] == 0)]
        row: dict[str, object] = {"method": name, "rate": f"{_edge(rate, tried)}{rate:.2g}", "seeds": len(one.mean)}
        row |= {HEADINGS[kind]: with_interval(one.score(kind), one.interval(kind)) for kind in TYPES[:3]}
        row["to balanced"], row["verdict"] = "–", "–"
        if name in rivals:
            found = rivals[name]
            row["to balanced"] = f"{found.mean:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"
            row["verdict"] = found.verdict
        rows.append(row | _costs(same.iloc[0] if len(same) else None))
    return pd.DataFrame(rows).set_index("method") if rows else pd.DataFrame(columns=["method"]).set_index("method")


@dataclass(frozen=True)
class Distance:
    """A method's ROUGE-L over balanced LoRA's, as a share of it, with its interval, and what the tests say."""

    mean: float
    low: float
    high: float
    verdict: str


def against_balanced(systems: Sequence[System]) -> dict[str, Distance]:
    """Each method's distance to balanced LoRA on the same test dialogues; none where balanced LoRA is not there."""
    named = {one.runs[0].name: one for one in systems}
    if BALANCED not in named:
        return {}
    base = named.pop(BALANCED)
    gaps = [compare(one.scores("rougeL"), base.scores("rougeL")) for one in named.values()]
    same = [compare(one.scores("rouge1"), base.scores("rouge1")).p_equivalent for one in named.values()]
    corrected = zip(holm([gap.p for gap in gaps]), holm(same), strict=True)
    found = {}
    for (name, one), (p, equal) in zip(named.items(), corrected, strict=True):
        ratio = resampled_means(one.scores("rougeL"), system=1) / resampled_means(base.scores("rougeL"), system=2) - 1
        low, high = np.percentile(ratio, [2.5, 97.5])
        found[name] = Distance(one.score("rougeL") / base.score("rougeL") - 1, low, high, verdict(p, equal))
    return found


def variants(systems: Sequence[System]) -> list[str]:
    """A sentence for each variant of LoRA: whether it lies within 2 % of plain LoRA, and a last one for all."""
    found = against_balanced(systems)
    lines, within, outside = [], 0, 0
    for name in VARIANTS:
        if name not in found:
            continue
        gap = found[name]
        near, far = gap.low > -NEAR and gap.high < NEAR, gap.low > NEAR or gap.high < -NEAR
        within, outside = within + near, outside + far
        said = "within 2 %" if near else "further away than 2 %" if far else "the test dialogues cannot tell"
        between = f"interval {gap.low:+.1%} to {gap.high:+.1%}"
        lines.append(f"{name}: {gap.mean:+.1%} of {BALANCED}'s ROUGE-L, {between}: {said}.")
    if not lines:
        return ["No variants of LoRA are in the records: make the group methods."]
    count = len(lines)
    lines.append(
        f"Of {count} variants {within} are shown to lie within 2 % of plain LoRA, {outside} beyond, and of "
        f"{count - within - outside} it stays open. The claim is {_claim(within == count, outside > 0)}."
    )
    return lines


def _claim(confirmed: bool, refuted: bool) -> str:
    return "refuted here" if refuted else "confirmed here" if confirmed else "neither confirmed nor refuted here"


def shares(made: Sequence[runs.Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row a method and number of training dialogues: test scores with intervals."""
    groups: dict[tuple[str, int], list[runs.Run]] = {}
    for run in made:
        groups.setdefault((run.name, run.config.dialogues["train"]), []).append(run)
    rows = []
    for (name, count), several in sorted(groups.items(), key=lambda entry: (entry[0][0], entry[0][1])):
        [one] = of_runs(several, test)
        row: dict[str, object] = {"method": name, "dialogues": count, "seeds": len(several)}
        for kind in TYPES[:3]:
            row |= one.flat(kind)
        rows.append(row)
    return pd.DataFrame(rows)


def data_gaps(made: Sequence[runs.Run], test: datasets.Dataset) -> list[str]:
    """Full against balanced LoRA on each number of training dialogues, in test ROUGE-L."""
    groups: dict[int, dict[str, list[runs.Run]]] = {}
    for run in made:
        groups.setdefault(run.config.dialogues["train"], {}).setdefault(run.name, []).append(run)
    both = {count: [of_runs(named[name], test)[0] for name in ("full", BALANCED)]
            for count, named in sorted(groups.items()) if {"full", BALANCED} <= set(named)}  # fmt: skip
    gaps = [compare(full.scores("rougeL"), lora.scores("rougeL")) for full, lora in both.values()]
    corrected = holm([gap.p for gap in gaps])
    lines = []
    for (count, (full, _)), gap, p in zip(both.items(), gaps, corrected, strict=True):
        winner = "full is ahead" if gap.mean > 0 else f"{BALANCED} is ahead"
        said = winner if p < LEVEL else "no difference is shown"
        seeds = f"{len(full.mean)} seed{'s' if len(full.mean) > 1 else ''}"
        lines.append(
            f"{count:,} dialogues: full minus {BALANCED} is {gap.mean:+.3f} ROUGE-L, interval {gap.low:+.3f} to "
            f"{gap.high:+.3f}, p (Holm) {p:.3f}, {seeds}: {said}."
        )
    return lines or ["No learning curve of data is in the records: make the group data."]


def _edge(rate: float, tried: pd.Series) -> str:
    """`<` where no lower rate was tried, `>` where no higher one was."""
    if len(tried) == 0 or tried.nunique() == 1:
        return ""
    return "<" if np.isclose(rate, tried.min()) else ">" if np.isclose(rate, tried.max()) else ""


def _costs(point: pd.Series | None) -> dict[str, str]:
    """What training took, from the point's row."""
    if point is None:
        return {}
    share = point["trainable_parameters"] / point["parameters"]

    def shown(name: str, divisor: float, spec: str) -> str:
        return "–" if pd.isna(point[name]) else format(point[name] / divisor, spec)

    return {
        "trained": f"{share:.2%}",
        "training s": shown("train_seconds", 1, ".0f"),
        "steps": str(point["steps_are"]),
        "peak GB": shown("peak_memory_bytes", 1e9, ".1f"),
        "adapter MB": shown("adapter_bytes", 1e6, ".1f"),
    }
