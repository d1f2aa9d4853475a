"""Tables from runs, as notebooks show them and the command line prints them: scores, costs, summaries side by side."""

import importlib.metadata
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import pandas as pd
import transformers
from IPython.display import HTML

from .errors import DataError
from .hardware import GIB
from .intervals import interval
from .rouge import TYPES
from .runs import Run

HEADINGS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
COST_COLUMNS = {  # key in `cost_measures`: heading, format
    "trained": ("trained %", ".2f"),
    "train_seconds": ("training s", ".0f"),
    "generate_seconds": ("summaries s", ".0f"),
    "peak_gib": ("peak memory GiB", ".2f"),
    "energy_wh": ("energy Wh", ".1f"),
    "price": ("price", ".4f"),
    "ship_mb": ("to ship MB", ".1f"),
}
_SECONDS_PER_HOUR = 3600
_LINE_BREAK = "\ue001"  # stands for one while a table is escaped


def setup_notebook() -> None:
    """Show whole texts in tables, and neither redrawn bars nor notes of the libraries."""
    pd.set_option("display.max_colwidth", None)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def display_name(run: Run, *, seed: bool = True) -> str:
    """The run's name, its seed where it is not 0, and whether it is one of the committed reference records."""
    suffix = f", seed {run.config.seed}" if seed and run.config.seed else ""
    return f"{run.name}{suffix}{' (reference)' if run.is_reference else ''}"


def with_interval(value: float, bounds: tuple[float, float], spec: str = ".3f") -> str:
    """A value with the bounds of its interval: `0.421 [0.412, 0.430]`."""
    return f"{value:{spec}} [{bounds[0]:{spec}}, {bounds[1]:{spec}}]"


def results(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run: ROUGE as mean and 95 % interval over dialogues, the fraction of weights trained, and seconds."""
    rows = []
    for run in runs:
        row: dict[str, object] = {"run": display_name(run)}
        for name in TYPES:
            row[HEADINGS[name]] = with_interval(run.scores[name].mean(), interval(run.scores[name]))
        trained = run.metrics["trainable_parameters"] / run.metrics["parameters"]
        row["trained"] = f"{trained:.2%}" if trained else "none"
        for heading, name in (("training s", "train_seconds"), ("summaries s", "generate_seconds")):
            row[heading] = f"{run.metrics[name]:.0f}" if name in run.metrics else "–"
        rows.append(row)
    return pd.DataFrame(rows).set_index("run")


def signature(test: datasets.Dataset) -> str:
    """How scores were computed, in one line, as sacrebleu's signatures do (Post 2018)."""
    counts = sorted({len(references) for references in test["summaries"]})
    return (
        f"rouge_score:{importlib.metadata.version('rouge-score')}|stem:yes|refs:mean{'-'.join(map(str, counts))}"
        f"|lsum:sentences|n:{len(test)}|bs:10000|seed:0"
    )


def costs(runs: Sequence[Run], price_per_hour: float | None = None) -> pd.DataFrame:
    """A row per run: its `cost_measures`, and on which device; a column that no run has is left out."""
    rows = []
    for run in runs:
        measures = cost_measures(run, price_per_hour)
        row = {heading: format(measures[key], spec) for key, (heading, spec) in COST_COLUMNS.items() if key in measures}
        rows.append({"run": display_name(run), **row, "device": run.environment["device"]})
    present = [heading for heading, _ in COST_COLUMNS.values() if any(heading in row for row in rows)]
    return pd.DataFrame(rows).set_index("run")[[*present, "device"]].fillna("–")


def cost_measures(run: Run, price_per_hour: float | None = None) -> dict[str, float]:
    """What a run cost: percent of the weights trained, seconds, GiB, Wh of the GPU, money, MB to ship. Absent: unknown.

    What is shipped to somebody who has the base model is the adapter, all weights as fp32, or nothing.

    Args:
        run: The run.
        price_per_hour: Of one device, in any currency; the price is of training and generating, on all devices.
    """
    known = run.metrics
    measures: dict[str, float] = {"trained": 100 * known["trainable_parameters"] / known["parameters"]}
    measures |= {name: known[name] for name in ("train_seconds", "generate_seconds") if name in known}
    if "peak_memory_bytes" in known:
        measures["peak_gib"] = known["peak_memory_bytes"] / GIB
    joules = ("train_joules", "generate_joules") if run.config.settings else ("generate_joules",)
    if all(name in known for name in joules):  # a training that was interrupted has none
        measures["energy_wh"] = sum(known[name] for name in joules) / _SECONDS_PER_HOUR
    if price_per_hour is not None:
        seconds = known.get("train_seconds", 0) + known.get("generate_seconds", 0)
        measures["price"] = price_per_hour * seconds / _SECONDS_PER_HOUR * run.environment.get("processes", 1)
    shipped = known.get("adapter_bytes", 4 * known["parameters"]) if run.config.settings else 0
    return measures | {"ship_mb": shipped / 1e6}


def predictions(run: Run, test: datasets.Dataset) -> list[str]:
    """A run's summaries, in the order of the test dialogues.

    Raises:
        DataError: The record's summaries are not those of these dialogues.
    """
    if list(run.predictions["id"]) != list(test["id"]):
        raise DataError(
            f"{run.folder}: its {len(run.predictions)} summaries are not of these {len(test)} test dialogues. "
            f"Was the run made with another data set or limit?"
        )
    return list(run.predictions["prediction"])


def examples(runs: Sequence[Run], test: datasets.Dataset, by: Run) -> HTML:
    """The dialogues on which one run scores best, in the middle and worst by ROUGE-L, with every run's summary.

    A column per dialogue, since there may be many runs.
    """
    order = np.argsort(-by.scores["rougeL"].to_numpy(), kind="stable")
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return texts_as_html(side_by_side(runs, test, {rule: int(number) for rule, number in chosen.items()}, "rougeL").T)


def side_by_side(runs: Sequence[Run], test: datasets.Dataset, chosen: Mapping[str, int], measure: str) -> pd.DataFrame:
    """A row per chosen dialogue (why, and its number): its texts, and each run's summary with its score."""
    rows = {}
    for reason, number in chosen.items():
        dialogue = test[number]
        row = {"id": dialogue["id"], "dialogue": dialogue["dialogue"], "references": "\n\n".join(dialogue["summaries"])}
        for run in runs:
            score = f"({HEADINGS[measure]} {run.scores[measure].iloc[number]:.3f})"
            row[display_name(run)] = f"{predictions(run, test)[number] or '(empty)'}\n{score}"
        rows[reason] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def texts_as_html(table: pd.DataFrame) -> HTML:
    """A table of texts as a notebook shows it: whole, with their line breaks, and escaped, whatever they hold."""
    with pd.option_context("display.max_colwidth", None):
        markup = table.replace("\n", _LINE_BREAK, regex=True).to_html(justify="left")
    return HTML(markup.replace(_LINE_BREAK, "<br>").replace("<td>", '<td style="text-align: left">'))
