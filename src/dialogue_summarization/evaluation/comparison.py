"""Tables and figures that compare systems: where they stand, how sure differences are, where they lie, what it cost.

A difference counts when its p-value, corrected for the number of pairs (Holm), is below 0.05. "As good as" counts when
the equivalence test says so, never because no difference was shown.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from datasets import Dataset
from IPython.display import HTML
from matplotlib.figure import Figure

from ..figures import COLOURS, MARKERS, colour_of, panels
from ..intervals import interval
from ..report import HEADINGS, display_name, side_by_side, texts_as_html, with_interval
from ..rouge import TYPES
from ..runs import OUTPUTS, Run, require_data
from .costs import COST_COLUMNS, cost_measures
from .statistics import MARGIN, compare, holm
from .systems import KINDS, System, baselines, from_columns, human_baseline, of_runs, published, published_scores

DETAILS = ("form only", "above form", "right", "training dialogues", "cut to fit", "validation loss", "seeds")


def all_systems(
    runs: Sequence[Run], test: Dataset, folder: str | None = None, train: Dataset | None = None
) -> list[System]:
    """Humans, published systems (on DialogSum, where their predictions are in `folder`), runs and baselines."""
    others = [*human_baseline(test), *(published(test, folder) if folder else [])]
    return [*others, *of_runs(runs, test), *baselines(test, train)]


def record_sources(runs: Sequence[Run], names: Sequence[str], splits: Mapping[str, Dataset]) -> pd.DataFrame:
    """A row per run: where its record comes from, or that it is missing. Raises `DataError` if it is of other data."""
    rows, made = {}, {run.name for run in runs}
    for run in runs:
        require_data(run, splits)
        committed = f"committed reference of {run.date}; notebooks 01 to 03 make it anew"
        rows[display_name(run)] = committed if run.is_reference else f"made here on {run.date}"
    rows |= {name: "missing: notebooks 01 to 03 make it" for name in names if name not in made}
    return pd.DataFrame({"record": rows}).rename_axis("run")


def resolution(systems: Sequence[System]) -> str:
    """What difference so many dialogues can show between two of these systems, as a line above their table."""
    pairs = list(itertools.combinations(systems, 2))
    least = [compare(one.scores("rougeL"), other.scores("rougeL")).minimum_detectable for one, other in pairs]
    count = systems[0].f1.shape[1]
    return f"{count} dialogues: a difference of {max(least, default=0):.3f} in ROUGE-L is found four times of five."


def judgements(experiment: str) -> pd.Series:
    """How many summaries of each committed run two readers called right, as `6 of 20`; empty where nobody judged."""
    path = OUTPUTS / "reference" / experiment / "judged.csv"
    if not path.exists():
        return pd.Series(dtype=str)
    judged = pd.read_csv(path)
    count = judged["id"].nunique()
    return (count * judged.groupby("run")["right"].mean()).map(lambda right: f"{right:.3g} of {count}")


def of_records(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per method: ROUGE as its records have it, the mean and interval over dialogues and seeds."""
    rows = {}
    for name in dict.fromkeys(run.name for run in runs):
        seeds = [run for run in runs if run.name == name]
        rows[name] = {"seeds": len(seeds), "training dialogues": f"{_training_dialogues(seeds[0]):,}"}
        for measure in TYPES:
            scores = np.stack([run.scores[measure] for run in seeds])
            rows[name][HEADINGS[measure]] = with_interval(scores.mean(), interval(scores))
    return pd.DataFrame(rows).T.rename_axis("run")


def _training_dialogues(run: Run) -> int:
    return run.config.dialogues["train"] if run.config.settings else 0


def leaderboard(
    systems: Sequence[System], test: Dataset | None = None, judged: pd.Series | None = None
) -> pd.DataFrame:
    """A row per system, by kind and then best first: ROUGE with intervals, and of runs what they learnt from.

    "Form only" is ROUGE-1 against other dialogues' references, and "above form" how much more the own ones give.
    Validation loss is before training, where it was measured, and after; seeds come with the range of their ROUGE-L.

    The human gap is the one in ROUGE-L from the best baseline (0 %) to the humans (100 %), if these are clearly above.
    With `test`, published systems that are not among `systems` are rows too, as they were scored once.
    """
    rows = [{"system": one.name, "kind": one.kind, **one.columns(), **_details(one, judged)} for one in systems]
    scores = pd.DataFrame(rows).set_index("system")
    if test is not None:
        recorded = published_scores(test).drop(index=scores.index, errors="ignore")
        scores = pd.concat([scores, recorded.assign(kind="published")]).fillna("–")
    scores = scores.sort_values("rougeL", ascending=False, kind="stable")
    scores = scores.sort_values("kind", key=lambda kinds: kinds.map(KINDS.index), kind="stable")
    table = scores[["kind"]].copy()
    for name in TYPES:
        table[HEADINGS[name]] = [from_columns(row, name) for _, row in scores.iterrows()]
    for heading in DETAILS:
        if (scores[heading] != "–").any():
            table[heading] = scores[heading]
    humans, copies = ([one for one in systems if one.kind == kind] for kind in ("human", "baseline"))
    if humans and copies:
        start = max(copies, key=lambda one: one.score("rougeL"))
        gap = compare(humans[0].scores("rougeL"), start.scores("rougeL"))
        if gap.low > 0:
            above = scores["rougeL"] - scores.loc[start.name, "rougeL"]
            table["share of the human gap"] = (above / gap.mean).map("{:.0%}".format)
    return table


def _details(one: System, judged: pd.Series | None) -> dict[str, str]:
    details = dict.fromkeys(DETAILS, "–")
    if not np.isnan(one.form_only):
        details |= {"form only": f"{one.form_only:.3f}", "above form": f"{one.score('rouge1') - one.form_only:.3f}"}
    if one.kind == "run":
        scores = one.scores("rougeL").mean(axis=1)
        spread = f": {scores.min():.3f} to {scores.max():.3f}" if len(scores) > 1 else ""
        details["seeds"] = f"{len(scores)}{spread}"
    if one.runs:
        first = one.runs[0]
        details["training dialogues"] = f"{_training_dialogues(first):,}"
        if cut := first.metrics.get("truncated_dialogues"):
            details["cut to fit"] = f"{cut} of {first.metrics['dialogues']}"
        details["right"] = "–" if judged is None else judged.get(_judged_name(one), "–")
        losses = first.log.dropna(subset="eval_loss") if "eval_loss" in first.log else pd.DataFrame()
        if len(losses):
            before = f"{losses['eval_loss'].iloc[0]:.2f} → " if losses["step"].iloc[0] == 0 else ""
            details["validation loss"] = f"{before}{losses['eval_loss'].iloc[-1]:.2f}"
    return details


def _judged_name(one: System) -> str:
    return "committed-adapter" if one.kind == "adapter" else one.runs[0].name


def best_references(systems: Sequence[System], measure: str) -> pd.DataFrame:
    """A row per system: the mean over references, the best of all, and the best of all but one, as humans have them."""
    rows = {}
    for one in systems:
        row = {"mean": one.f1, "best reference": one.best, "best of all but one": one.best_of_others}
        rows[one.name] = {name: f"{f1[:, :, TYPES.index(measure)].mean():.3f}" for name, f1 in row.items()}
    return pd.DataFrame(rows).T.rename_axis("system").replace("nan", "–")


def pairwise(systems: Sequence[System], measure: str) -> pd.DataFrame:
    """A row per pair, the better one first: its difference, tests of it and of equivalence in ROUGE-1 (TOST), verdict.

    Holm's correction is for the number of pairs, in both tests.
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
    return pd.DataFrame(rows, columns=None if rows else ["pair", "verdict"]).set_index("pair")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def verdict(p: float, p_equivalent: float) -> str:
    """What two corrected p-values allow to say."""
    if p < 0.05:
        return "differ, by less than the margin" if p_equivalent < 0.05 else "differ"
    return "as good as each other" if p_equivalent < 0.05 else "not distinguishable"


def planned_comparison(systems: Sequence[System]) -> pd.DataFrame:
    """Whether `lora-balanced` is as good as `full` in ROUGE-1: the one pair named before the runs were made."""
    both = [one for one in systems if one.name.removesuffix(" (reference)") in ("full", "lora-balanced")]
    return pairwise(both, "rouge1")


def groups(test: Dataset, by: str, least: int = 10) -> pd.Series:
    """Each test dialogue's quarter by "length" in words or by "turns"; or its "topic", if `least` dialogues have it."""
    if by == "topic":
        topics = pd.Series(list(test["topic"])).replace("", "no topic")
        return topics.where(topics.map(topics.value_counts()) >= least, "other topics").astype("category")
    unit = "words" if by == "length" else "turns"
    sizes = pd.Series([len(text.split()) if by == "length" else text.count("\n") + 1 for text in test["dialogue"]])
    quarters = pd.Series(np.searchsorted(np.quantile(sizes, [0.25, 0.5, 0.75]).round(), sizes))
    names = sizes.groupby(quarters).agg(lambda own: f"{own.min()} to {own.max()} {unit}")
    return quarters.map(names).astype(pd.CategoricalDtype(names))


def by_group(systems: Sequence[System], test: Dataset, by: str, measure: str = "rougeL") -> pd.DataFrame:
    """A row per group of dialogues, grouped as `groups` does; a column per system: the mean with its interval."""
    rows = {}
    for name, dialogues in pd.Series(range(len(test))).groupby(groups(test, by), observed=True):
        rows[name] = {"dialogues": len(dialogues)}
        for one in systems:
            scores = one.scores(measure)[:, dialogues]
            rows[name][one.name] = with_interval(scores.mean(), interval(scores))
    return pd.DataFrame(rows).T.rename_axis(by)


def biggest_differences(one: Run, other: Run, test: Dataset, *, count: int = 10, measure: str = "rougeL") -> HTML:
    """The dialogues where `one` wins and loses most against `other`, as a table of texts side by side."""
    gap, name = (one.scores[measure] - other.scores[measure]).to_numpy(), display_name(one)
    order = np.argsort(-gap, kind="stable").tolist()
    chosen = {f"{name} wins by {gap[n]:.3f} (dialogue {n + 1})": n for n in order[:count] if gap[n] > 0}
    chosen |= {f"{name} loses by {-gap[n]:.3f} (dialogue {n + 1})": n for n in order[::-1][:count] if gap[n] < 0}
    return texts_as_html(side_by_side([one, other], test, chosen, measure))


def standings(systems: Sequence[System], measure: str = "rougeL", committed: Sequence[Run] = ()) -> Figure:
    """Every system's score with its 95 % interval, from the baselines to the humans; committed runs as grey dots."""
    markers = MARKERS | {"human": "*", "published": "P", "baseline": "x"}
    colours = COLOURS | {"human": "black", "published": "#6f6f6f", "baseline": "#9a9a9a"}
    ranked = sorted(systems, key=lambda one: one.score(measure))
    figure, (ax,) = panels(width=7.5, height=0.28 * len(ranked) + 1)
    for place, one in enumerate(ranked):
        name = one.runs[0].name if one.runs else one.kind
        dots = [run.metrics[measure] for run in committed if run.name == name]
        ax.plot(dots, [place] * len(dots), "o", color="#b0b0b0", markersize=6)
        ax.plot(one.interval(measure), [place, place], "k|-")
        ax.plot(one.score(measure), place, markers.get(name, "o"), color=colours.get(name, "#3f7f5f"), markersize=8)
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
            ax.scatter(cost, run.metrics["rougeL"], label=display_name(run), clip_on=False, **style)
        ax.set(xlabel=COST_COLUMNS[key][0], xlim=(0, 1.1 * costs[key].max()))
    figure.supylabel("ROUGE-L", fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower center")
    return figure
