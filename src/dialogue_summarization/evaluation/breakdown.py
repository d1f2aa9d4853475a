"""Where systems differ: kinds of dialogues, single summaries, and summaries that visibly went wrong."""

from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
from IPython.display import HTML

from ..intervals import interval
from ..report import display_name, predictions, side_by_side, texts_as_html, with_interval
from ..runs import Run
from .systems import System
from .text_metrics import most_repeated, novelty, words

FLAGS = ("empty", "cut off", "repeats", "copies")  # what a summary can have that visibly went wrong


def groups(test: datasets.Dataset, by: str, least: int = 10) -> pd.Series:
    """The group of each test dialogue, in order: by "length" in words or by "turns" its quarter, by "topic" its topic.

    Topics with fewer than `least` dialogues are all "other topics".
    """
    if by == "topic":
        topics = pd.Series(list(test["topic"])).replace("", "no topic")
        return topics.where(topics.map(topics.value_counts()) >= least, "other topics").astype("category")
    sizes = pd.Series([len(text.split()) if by == "length" else text.count("\n") + 1 for text in test["dialogue"]])
    edges = np.unique(np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]).round().astype(int))
    if len(edges) < 2:
        return sizes.astype(str).astype("category")
    unit, names = "words" if by == "length" else "turns", []
    for low, high in zip([edges[0], *(edges[1:-1] + 1)], edges[1:], strict=True):
        names.append(f"{low} to {high} {unit}" if low < high else f"{high} {unit}")
    return pd.cut(sizes, edges, labels=names, include_lowest=True)


def by_group(systems: Sequence[System], test: datasets.Dataset, by: str, measure: str = "rougeL") -> pd.DataFrame:
    """A row per group of dialogues, grouped as `groups` does; a column per system: the mean with its interval."""
    rows = {}
    for name, dialogues in pd.Series(range(len(test))).groupby(groups(test, by), observed=True):
        rows[name] = {"dialogues": len(dialogues)}
        for one in systems:
            scores = one.scores(measure)[:, dialogues]
            rows[name][one.name] = with_interval(scores.mean(), interval(scores))
    return pd.DataFrame(rows).T.rename_axis(by)


def biggest_differences(
    one: Run, other: Run, test: datasets.Dataset, *, count: int = 10, measure: str = "rougeL"
) -> HTML:
    """The dialogues where `one` wins and loses most against `other`, as a table of texts side by side."""
    gap, name = (one.scores[measure] - other.scores[measure]).to_numpy(), display_name(one)
    order = np.argsort(-gap, kind="stable").tolist()
    chosen = {f"{name} wins by {gap[n]:.3f} (dialogue {n + 1})": n for n in order[:count] if gap[n] > 0}
    chosen |= {f"{name} loses by {-gap[n]:.3f} (dialogue {n + 1})": n for n in order[::-1][:count] if gap[n] < 0}
    return texts_as_html(side_by_side([one, other], test, chosen, measure))


def failure_flags(summary: str, dialogue: str) -> set[str]:
    """Which of `FLAGS` a summary has. A quick look, not a verdict: each can be right for some dialogue.

    It is cut off if it does not end a sentence, as at the limit of new tokens; repeats if a 3-gram stands in it 3 times
    or more; and copies if the dialogue has 80 % or more of its 4-grams.
    """
    if not summary.strip():
        return {"empty"}
    tokens = words(summary)
    flags = {
        "cut off": summary.rstrip(" \"'”’)")[-1:] not in (".", "!", "?", "…"),
        "repeats": most_repeated(tokens) >= 3,
        "copies": len(tokens) >= 8 and novelty(tokens, words(dialogue), 4) <= 0.2,
    }
    return {name for name, is_set in flags.items() if is_set}


def failures(runs: Sequence[Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row per run: how many of its summaries have each of `FLAGS`, and how many have any."""
    rows = {}
    for run in runs:
        flags = [failure_flags(*pair) for pair in zip(predictions(run, test), test["dialogue"], strict=True)]
        row = {name: sum(name in several for several in flags) for name in FLAGS}
        rows[display_name(run)] = row | {"any": sum(map(bool, flags)), "of": len(flags)}
    return pd.DataFrame(rows).T.rename_axis("run")
