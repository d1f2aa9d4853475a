"""Where systems differ: kinds of dialogues, single summaries, and summaries that went wrong in a way that shows."""

import html
import itertools
from collections.abc import Iterable, Sequence

import datasets
import numpy as np
import pandas as pd

from . import text_metrics
from .report import HEADINGS, dialogue_scores, label, texts_of, with_interval
from .runs import Run
from .significance import interval
from .systems import System

FLAGS = {
    "empty": "nothing was written",
    "cut off": "does not end a sentence: the limit of new tokens was reached",
    "repeats": "a group of 3 words stands in it 3 times or more",
    "copies": "80 % or more of its groups of 4 words are the dialogue's",
}


class Html:
    """Markup that a notebook shows as it is."""

    def __init__(self, markup: str) -> None:
        self.markup = markup

    def __repr__(self) -> str:
        return "(a table of texts, shown where HTML is)"  # without an address, which each execution would change

    def _repr_html_(self) -> str:
        return self.markup


def groups(test: datasets.Dataset, by: str, least: int = 10) -> pd.Series:
    """The group of each test dialogue, in order: a quarter of the lengths, a number of turns, or a topic.

    Args:
        test: The dialogues.
        by: "length" (in words), "turns" or "topic".
        least: Topics with fewer dialogues are all "other topics".
    """
    if by == "topic":
        topics = pd.Series(list(test["topic"])).replace("", "no topic")
        return topics.where(topics.map(topics.value_counts()) >= least, "other topics").astype("category")
    sizes = pd.Series([len(text.split()) if by == "length" else text.count("\n") + 1 for text in test["dialogue"]])
    edges = np.unique(np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]).round().astype(int))
    if len(edges) < 2:
        return sizes.astype(str).astype("category")
    unit = "words" if by == "length" else "turns"
    names = []
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        first = low + (place > 0)
        names.append(f"{high} {unit}" if first == high else f"{first} to {high} {unit}")
    return pd.cut(sizes, edges, labels=names, include_lowest=True)


def breakdown(systems: Sequence[System], test: datasets.Dataset, by: str, measure: str = "rougeL") -> pd.DataFrame:
    """A row a group of dialogues, a column a system: the mean with its interval."""
    group = groups(test, by)
    rows = {}
    for name in group.cat.categories:
        chosen = np.flatnonzero(group == name)
        if len(chosen):
            rows[name] = {"dialogues": len(chosen)} | {
                one.name: with_interval(values.mean(), interval(values))
                for one in systems
                for values in [one.scores(measure)[:, chosen]]
            }
    return pd.DataFrame(rows).T.rename_axis(by)


def examples(runs: Sequence[Run], test: datasets.Dataset, by: Run) -> Html:
    """The dialogues on which one run scores best, in the middle and worst by ROUGE-L, with every run's summary.

    A column a dialogue, since there may be many runs.
    """
    order = np.argsort(-dialogue_scores(by, test)["rougeL"].to_numpy(), kind="stable")
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    rows = _texts(runs, test, [(rule, int(number)) for rule, number in chosen.items()], "rougeL")
    return Html(table([list(column) for column in zip(*rows, strict=True)]))


def largest_gaps(one: Run, other: Run, test: datasets.Dataset, *, count: int = 10, measure: str = "rougeL") -> Html:
    """The dialogues where `one` wins and loses most against `other`, as a table of texts side by side."""
    gap = (dialogue_scores(one, test)[measure] - dialogue_scores(other, test)[measure]).to_numpy()
    order = np.argsort(-gap, kind="stable")
    wins = [(f"{label(one)} wins by {gap[n]:.3f}", int(n)) for n in order[:count] if gap[n] > 0]
    losses = [(f"{label(one)} loses by {-gap[n]:.3f}", int(n)) for n in order[::-1][:count] if gap[n] < 0]
    return Html(table(_texts([one, other], test, wins + losses, measure)))


def _texts(
    runs: Sequence[Run], test: datasets.Dataset, rows: Sequence[tuple[str, int]], measure: str
) -> list[list[str]]:
    """A row a dialogue: why it is here, the dialogue, its references, and each run's summary with its score.

    Texts are escaped: a summary may hold anything, markup too.
    """
    scores = {label(run): dialogue_scores(run, test)[measure].to_numpy() for run in runs}
    texts = {label(run): texts_of(run, test) for run in runs}
    lines = [["", "dialogue", "references", *map(html.escape, scores)]]
    for reason, number in rows:
        row = test[number]
        cells = [f"<b>{html.escape(reason)}</b><br>{html.escape(row['id'])}", escaped(row["dialogue"])]
        cells.append("<br><br>".join(escaped(reference) for reference in row["summaries"]))
        cells += [
            f"{escaped(texts[name][number])}<br><i>{HEADINGS[measure]} {values[number]:.3f}</i>"
            for name, values in scores.items()
        ]
        lines.append(cells)
    return lines


def table(rows: Sequence[Iterable[str]]) -> str:
    """An HTML table of cells that are markup already, the first row its head."""
    lines = []
    for kind, row in zip("h" + "d" * len(rows), rows, strict=False):
        lines.append(
            "".join(f'<t{kind} style="text-align: left; vertical-align: top">{cell}</t{kind}>' for cell in row)
        )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def escaped(text: str) -> str:
    """A text as HTML that shows it, whatever it holds."""
    return html.escape(text).replace("\n", "<br>") if text.strip() else "<i>empty</i>"


def flags(summary: str, dialogue: str) -> set[str]:
    """Which of `FLAGS` a summary has. A quick look, not a verdict: each can be right for some dialogue."""
    if not summary.strip():
        return {"empty"}
    tokens, heard = text_metrics.words(summary), text_metrics.words(dialogue)
    found = set()
    if summary.rstrip(" \"'”’)")[-1:] not in (".", "!", "?", "…"):
        found.add("cut off")
    if text_metrics.most_repeated(tokens) >= 3:
        found.add("repeats")
    if len(tokens) >= 8 and text_metrics.new_grams(tokens, heard, 4) <= 0.2:
        found.add("copies")
    return found


def failures(runs: Sequence[Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row a run: how many of its summaries have each of `FLAGS`, and how many have any."""
    rows = []
    for run in runs:
        found = [flags(*pair) for pair in zip(texts_of(run, test), test["dialogue"], strict=True)]
        counts = {name: sum(name in several for several in found) for name in FLAGS}
        rows.append({"run": label(run), **counts, "any": sum(map(bool, found)), "of": len(found)})
    return pd.DataFrame(rows).set_index("run")


def text_table(runs: Sequence[Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row a run: chrF, BLEU and the other text measures with their intervals."""
    dialogues, references = list(test["dialogue"]), list(test["summaries"])
    rows = {label(run): text_metrics.describe(texts_of(run, test), dialogues, references) for run in runs}
    specs = {"chrF": ".1f", "BLEU": ".1f", "words": ".1f"}
    return pd.DataFrame(
        {
            name: {measure: with_interval(*entry, specs.get(measure, ".2f")) for measure, entry in row.items()}
            for name, row in rows.items()
        }
    ).T.rename_axis("run")
