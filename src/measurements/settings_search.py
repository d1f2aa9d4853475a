"""What each setting changed on validation: pairs of trainings in `search.csv`, beside the range over seeds."""

from collections.abc import Iterator, Mapping

import pandas as pd

from dialogue_summarization import runs
from dialogue_summarization.prompts import BRIEF, PROMPT

from . import tables

Query = Mapping[str, object]
FOLDER = tables.REFERENCE / "smollm2-dialogsum"
SEARCH = pd.read_csv(FOLDER / "search.csv")
SEARCH["prompt"] = SEARCH["prompt"].str.replace("\\n", "\n")
# Rows of search.csv by their columns; None: an empty cell. "words" were counted in the first series of trainings only.
AVERAGED = {"epoch": 6, "averaged_epochs": 5, "num_beams": 4, "length_penalty": 0.6, "change": None}
FIRST = {"run": "full", "prompt": BRIEF, "learning_rate": 1e-4, "label_smoothing": 0.1, "loss": None} | AVERAGED
ADAPTER, LINEAR = {"run": "lora-balanced", "learning_rate": 2e-3}, {"run": "lora-all-linear", "learning_rate": 1e-3}
AGAIN = {name: value for name, value in FIRST.items() if name != "loss"} | {"words": None}
SMALL = AGAIN | {"run": "lora-efficient", "learning_rate": 2e-3, "epochs": 10, "epoch": 10}
GREEDY = {"run": "zero-shot", "num_beams": 1, "max_new_tokens": 80}
CHANGES = ("weight decay 0", "weight decay 0.1", "adapter dropout 0.1", "prompt tokens' loss 0.05", "NEFTune 5")
CHANGES += ("train without near-repeats",)
OLD = {"prompt": PROMPT, "epochs": 6, "epoch": 6, "num_beams": 4, "length_penalty": 1} | ADAPTER


def rows_of(query: Query) -> pd.DataFrame:
    """The trainings that have these values."""
    rows = SEARCH
    for column, value in query.items():
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    return rows


def trials() -> Iterator[tuple[str, str, str, Query, Query, Query, bool]]:
    """Setting, value, what it is compared with; what both trainings have, what each has; whether the guide shows it."""
    yield "prompt", "one short sentence", "the course lab's", GREEDY, {"prompt": BRIEF}, {"prompt": PROMPT}, True
    yield "learning rate", "1e-4", "5e-5, 8 epochs", FIRST, {}, {"learning_rate": 5e-5, "epochs": 8, "epoch": 8}, True
    for name in ("1e-3", "4e-3", "8e-3"):
        yield "learning rate", "2e-3", name, SMALL, {}, {"learning_rate": float(name)}, name == "1e-3"
    for epochs in (6, 8, 16, 24):
        yield "epochs", "10", f"{epochs}", SMALL, {}, {"epochs": epochs, "epoch": epochs}, epochs in (6, 24)
    for base in (AGAIN, AGAIN | ADAPTER):
        yield "label smoothing", "0.1", "0", base, {}, {"label_smoothing": 0}, True
    for base in (FIRST, FIRST | ADAPTER, FIRST | LINEAR):
        yield "last epochs averaged", "5", "1", base | {"length_penalty": 1}, {}, {"averaged_epochs": 1}, True
    yield "beams", "4", "1", OLD, {"no_repeat_ngram_size": 0}, {"num_beams": 1, "averaged_epochs": None}, True
    for base in (FIRST, FIRST | ADAPTER, FIRST | LINEAR):
        yield "length penalty", "0.6", "1.0", base, {}, {"length_penalty": 1}, True
    yield "no repeated trigrams", "off", "on", OLD, {"no_repeat_ngram_size": 0}, {"no_repeat_ngram_size": 3}, True
    for change in CHANGES:
        for base in (AGAIN, AGAIN | ADAPTER, SMALL):
            if len(rows_of(base | {"change": change})):
                yield change, "on", "off", base, {"change": change}, {}, False


def effects(in_guide: bool) -> pd.DataFrame:
    """A row per setting and run: ROUGE-2 on validation with both values, and how much it differs between seeds."""
    spread, rows = seed_range(), []
    for setting, value, other, base, new, old, is_shown in trials():
        if is_shown or not in_guide:
            [after], [before] = (rows_of(base | own)["rouge2"] for own in (new, old))
            row = {"setting": setting, "run": tables.label(base["run"]), "value": value, "compared with": other}
            row |= {"ROUGE-2": f"{before:.3f} → {after:.3f}", "effect": f"{after - before:+.3f}"}
            rows.append(row | {"range over seeds": spread.get(base["run"], "–")})
    return pd.DataFrame(rows).set_index("setting")


def seed_range() -> dict[str, str]:
    """By how much ROUGE-2 on validation differs where only the seed, or the training of one seed, does."""
    scores: dict[str, list[float]] = {}
    for folder, root in (("smollm2-dialogsum", FOLDER.parent), ("repeats", FOLDER), ("earlier", FOLDER)):
        for run in (run for run in runs.collect(folder, root) if run.config.settings):
            scores.setdefault(run.name, []).append(run.log["eval_rouge2"].dropna().iloc[-1])
    return {name: f"{max(values) - min(values):.3f}" for name, values in scores.items() if len(values) > 2}
