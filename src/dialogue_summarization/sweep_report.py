"""What a sweep's records say of the methods and of the data: tables, and sentences that are computed from them.

They need the records alone: what a point scored on each test dialogue is kept beside its summaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from . import runs, sweep_records
from .comparison import LEVEL, verdict
from .experiments import EXPERIMENTS, ConfigurationError
from .report import HEADINGS, with_interval
from .rouge import TYPES
from .significance import compare, holm, resampled_means
from .sweep_points import GROUPS, VARIANTS, group
from .systems import System

BALANCED = "lora-balanced"
NEAR = 0.02  # of plain LoRA's score: "within 1 to 2 %" (Lee et al. 2026, arXiv 2602.04998)
OPEN = "the test dialogues cannot tell"


def contents(folder: Path) -> pd.DataFrame:
    """A row a group: points that were made, and that diverged, minutes and device; for what is missing, what makes it.

    Raises:
        RecordError: A file is damaged.
    """
    rows = []
    for name in GROUPS:
        table = sweep_records.read(folder / f"{name}.csv")
        command = f"python -m dialogue_summarization.sweep {name} --outputs DIR, on a GPU"
        planned = _planned(name, folder)
        if not len(table):
            device = f"missing: {command}"
        else:
            device = ", ".join(table["device"].unique()) + ("" if len(table) == planned else f"; the rest: {command}")
        rows.append({
            "group": name, "points": f"{len(table)} of {planned or 'some'}", "diverged": int(table["diverged"].sum()),
            "minutes": round(table["seconds"].sum() / 60, 1), "device": device,
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("group")


def _planned(name: str, folder: Path) -> int | None:
    """How many points a group has; None where that depends on another's that is not made."""
    try:
        return len(group(name, EXPERIMENTS["smollm2-dialogsum"], 1, folder).points)
    except ConfigurationError:
        return None


def load(folder: Path, name: str) -> pd.DataFrame:
    """The points of a group and of its repeats, without those that diverged. Raises `RecordError`."""
    tables = [sweep_records.read(folder / f"{file}.csv") for file in (name, f"{name}-repeats")]
    table = pd.concat([one for one in tables if len(one)] or tables[:1], ignore_index=True)
    return table[table["diverged"] == 0].reset_index(drop=True)


def tested(folder: Path, name: str) -> list[System]:
    """What a group and its repeats scored on the test split: a system a method and number of training dialogues.

    Raises:
        RecordError: A record is damaged.
    """
    groups: dict[tuple[str, int], list[runs.Run]] = {}
    for file in (name, f"{name}-repeats"):
        for path in sorted((folder / file).glob("*/share-*/seed-*/metrics.json")):
            if "." not in path.parent.name:
                run = runs.read(path.parent)
                groups.setdefault((run.name, run.config.dialogues["train"]), []).append(run)
    return [
        System(key[0], "run", np.stack([_scores(run) for run in several]), None, None, pd.DataFrame(), tuple(several))
        for key, several in sorted(groups.items(), key=lambda entry: entry[0])
    ]


def _scores(run: runs.Run) -> np.ndarray:
    path = run.folder / sweep_records.SCORES
    try:
        table = pd.read_csv(path)
        if list(table["id"].astype(str)) != list(run.predictions["id"]):
            raise ValueError("its dialogues are not those of predictions.csv")
        return table[list(TYPES)].to_numpy(dtype=float)
    except (OSError, ValueError, KeyError) as error:
        raise runs.RecordError(f"{path} cannot be read ({error}). Move its folder away, and sweep again.") from None


def methods(systems: Sequence[System], points: pd.DataFrame) -> pd.DataFrame:
    """A row a method, best first: its best rate, test scores, distance to balanced LoRA, and what the training took.

    A rate marked `<` or `>` is the lowest or highest that was tried: a better one may lie beyond. The distance is in
    ROUGE-L, in per cent of balanced LoRA's; the verdict is after Holm's correction for the number of methods.

    Args:
        systems: As `tested` gives them.
        points: As `load` gives them.
    """
    distances, rows = against_balanced(systems), []
    for one in sorted(systems, key=lambda one: -one.score("rougeL")):
        rate = one.runs[0].config.settings["learning_rate"]
        own = points[(points["method"] == one.name) & (points["seed"] == one.runs[0].config.seed)]
        row: dict[str, object] = {
            "method": one.name,
            "rate": f"{_edge(rate, own['learning_rate'])}{rate:.2g}",
            "seeds": len(one.runs),
        }
        row |= {HEADINGS[kind]: with_interval(one.score(kind), one.interval(kind)) for kind in TYPES[:3]}
        gap = distances.get(one.name)
        row["over balanced"] = f"{gap.mean:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]" if gap else "–"
        row["verdict"] = gap.verdict if gap else "–"
        rows.append(row | _costs(own[np.isclose(own["learning_rate"], rate)]))
    return pd.DataFrame(rows).set_index("method") if rows else pd.DataFrame()


@dataclass(frozen=True)
class Distance:
    """A method's ROUGE-L over balanced LoRA's, as a share of it, with its 95 % interval, and what the tests say."""

    mean: float
    low: float
    high: float
    verdict: str


def against_balanced(systems: Sequence[System]) -> dict[str, Distance]:
    """Each method's distance to balanced LoRA on the same test dialogues; none where balanced LoRA is not there."""
    named = {one.name: one for one in systems}
    base = named.pop(BALANCED, None)
    if base is None:
        return {}
    gaps = [compare(one.scores("rougeL"), base.scores("rougeL")) for one in named.values()]
    same = [compare(one.scores("rouge1"), base.scores("rouge1")).p_equivalent for one in named.values()]
    corrected = zip(holm([gap.p for gap in gaps]), holm(same), strict=True)
    found = {}
    for (name, one), (p, equal) in zip(named.items(), corrected, strict=True):
        ratio = resampled_means(one.scores("rougeL"), system=1) / resampled_means(base.scores("rougeL"), system=2) - 1
        low, high = np.percentile(ratio, [2.5, 97.5])
        mean = one.score("rougeL") / base.score("rougeL") - 1
        found[name] = Distance(mean, float(low), float(high), verdict(p, equal))
    return found


def variants(systems: Sequence[System]) -> list[str]:
    """A sentence for each variant of LoRA, whether it lies within 2 % of plain LoRA; then one for all of them."""
    found, lines, within, beyond = against_balanced(systems), [], 0, 0
    for name in VARIANTS:
        if name not in found:
            continue
        gap = found[name]
        near, far = gap.low > -NEAR and gap.high < NEAR, gap.low > NEAR or gap.high < -NEAR
        within, beyond = within + near, beyond + far
        said = f"within {NEAR:.0%}" if near else f"further away than {NEAR:.0%}" if far else OPEN
        between = f"interval {gap.low:+.1%} to {gap.high:+.1%}"
        lines.append(f"{name}: {gap.mean:+.1%} of {BALANCED}'s ROUGE-L, {between}: {said}.")
    if not lines:
        return ["No variants of LoRA are in the records: make the group methods."]
    missing = [name for name in VARIANTS if name not in found]
    claim = "refuted" if beyond else "confirmed" if within == len(lines) else "neither confirmed nor refuted"
    return [
        *lines,
        f"Of {len(lines)} variants {within} are shown to lie within {NEAR:.0%} of plain LoRA and {beyond} beyond; of "
        f"{len(lines) - within - beyond} {OPEN}. The claim is {claim} here."
        + (f" Not tested: {', '.join(missing)}." if missing else ""),
    ]


def shares(systems: Sequence[System]) -> pd.DataFrame:
    """A row a method and number of training dialogues: seeds, and test scores with their intervals."""
    rows = []
    for one in systems:
        row: dict[str, object] = {"method": one.name, "dialogues": _dialogues(one), "seeds": len(one.runs)}
        for kind in TYPES[:3]:
            row |= one.flat(kind)
        rows.append(row)
    return pd.DataFrame(rows)


def data_gaps(systems: Sequence[System]) -> list[str]:
    """Full fine-tuning against balanced LoRA for each number of training dialogues, in test ROUGE-L."""
    named = {(one.name, _dialogues(one)): one for one in systems}
    counts = sorted(count for name, count in named if name == "full" and (BALANCED, count) in named)
    both = [(named["full", count], named[BALANCED, count]) for count in counts]
    gaps = [compare(full.scores("rougeL"), lora.scores("rougeL")) for full, lora in both]
    lines = []
    for count, (full, _), gap, p in zip(counts, both, gaps, holm([gap.p for gap in gaps]), strict=True):
        ahead = "full is ahead" if gap.mean > 0 else f"{BALANCED} is ahead"
        lines.append(
            f"{count:,} dialogues: full minus {BALANCED} is {gap.mean:+.3f} ROUGE-L, interval {gap.low:+.3f} to "
            f"{gap.high:+.3f}, p (Holm) {p:.3f}, seeds: {len(full.runs)}: {ahead if p < LEVEL else OPEN}."
        )
    return lines or ["No learning curve of data is in the records: make the group data."]


def _dialogues(one: System) -> int:
    return one.runs[0].config.dialogues["train"]


def _edge(rate: float, tried: pd.Series) -> str:
    """`<` where no lower rate was tried, `>` where no higher one was."""
    if tried.nunique() < 2:
        return ""
    return "<" if np.isclose(rate, tried.min()) else ">" if np.isclose(rate, tried.max()) else ""


def _costs(rows: pd.DataFrame) -> dict[str, str]:
    """What a point's training took; nothing where its row is not there."""
    if rows.empty:
        return {}
    point = rows.iloc[0]

    def shown(name: str, unit: float, spec: str) -> str:
        return "–" if pd.isna(point[name]) else format(point[name] / unit, spec)

    return {
        "trained": f"{point['trainable_parameters'] / point['parameters']:.2%}",
        "training s": shown("train_seconds", 1, ".0f"),
        "steps": point["steps_are"],
        "peak GB": shown("peak_memory_bytes", 1e9, ".1f"),
        "adapter MB": shown("adapter_bytes", 1e6, ".1f"),
    }
