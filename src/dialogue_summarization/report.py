"""Tables from runs, as notebooks show them and the command line prints them: scores, costs, summaries side by side."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from itertools import chain

import datasets
import numpy as np
import pandas as pd
import transformers
from IPython.display import HTML

from .errors import DataError
from .intervals import interval
from .rouge import TYPES
from .runs import Run, require_data
from .texts import has_other_letters

HEADINGS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
_COSTS = {
    "training (s)": ("train_seconds", 1),
    "generation (s)": ("generate_seconds", 1),
    "peak memory (GB)": ("peak_memory_bytes", 1e9),
}
_LETTERS = {"query": "q", "key": "k", "value": "v", "output": "o", "mlp_in": "MLP", "mlp_out": "MLP"}
_LINE_BREAK = "\ue001"  # stands for one while a table is escaped


def setup_notebook() -> None:
    """Show whole texts in tables, and neither redrawn bars nor notes of the libraries."""
    pd.set_option("display.max_colwidth", None)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def display_name(run: Run, *, seed: bool = True) -> str:
    """A run as tables call it: `LoRA r16, q k v o: lora-balanced`; with its seed if not 0, and if it is committed."""
    title = title_of(run.name, run.config.peft)
    suffix = f", seed {run.config.seed}" if seed and run.config.seed else ""
    return f"{title}{suffix}{' (reference)' if run.is_reference else ''}"


def title_of(method: str, peft: Mapping[str, object] | None) -> str:
    """A method's name; of LoRA, its rank and layers before it."""
    if not peft or peft["peft_type"] != "LORA":
        return method
    letters = dict.fromkeys(_LETTERS.get(name, name) for name in peft["target_modules"])
    return f"LoRA r{peft['r']}, {' '.join(letters)}: {method}"


def with_interval(value: float, bounds: tuple[float, float], spec: str = ".3f") -> str:
    """A value with the bounds of its interval: `0.421 [0.412, 0.430]`; `0.421 [–]` where there is none, or `–`."""
    if np.isnan(bounds[0]):
        return "–" if np.isnan(value) else f"{value:{spec}} [–]"
    return f"{value:{spec}} [{bounds[0]:{spec}}, {bounds[1]:{spec}}]"


def results(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run: ROUGE as mean and 95 % interval over dialogues, the part that was trained, time and memory.

    "Cut to fit" is how many test dialogues lost their end. Raises `DataError` where the runs are of different data.
    """
    rows = []
    if other := next((run for run in runs if run.config.data_fingerprint != runs[0].config.data_fingerprint), None):
        raise DataError(f"{other.folder} and {runs[0].folder} are of different data: make one of them anew.")
    for run in runs:
        row: dict[str, object] = {"run": display_name(run)}
        for name in TYPES:
            row[HEADINGS[name]] = with_interval(run.scores[name].mean(), interval(run.scores[name]))
        trained = run.metrics["trainable_parameters"] / run.metrics["parameters"]
        row["trainable parameters"] = f"{trained:.2%}" if trained else "none"
        if cut := run.metrics.get("truncated_dialogues"):
            row["cut to fit"] = f"{cut} of {run.metrics['dialogues']}"
        for heading, (name, unit) in _COSTS.items():
            row[heading] = f"{run.metrics[name] / unit:.1f}" if name in run.metrics else "–"
        rows.append(row)
    return pd.DataFrame(rows).set_index("run").fillna("–")


def signature(test: datasets.Dataset) -> str:
    """How scores were computed, in one line, as sacrebleu's signatures do (Post 2018)."""
    counts = "-".join(map(str, sorted({len(references) for references in test["summaries"]})))
    words = "|tok:unicode" if has_other_letters(chain.from_iterable(test["summaries"])) else ""
    version = importlib.metadata.version("rouge-score")
    return f"rouge_score:{version}|stem:yes{words}|refs:mean{counts}|lsum:sentences|n:{len(test)}|bs:10000|seed:0"


def predictions(run: Run, test: datasets.Dataset) -> list[str]:
    """A run's summaries, in the order of the test dialogues. Raises `DataError` where they are of other dialogues."""
    if list(run.predictions["id"]) != list(test["id"]):
        what = f"its {len(run.predictions)} summaries are not of these {len(test)} test dialogues"
        raise DataError(f"{run.folder}: {what}. Was the run made with another data set or limit?")
    require_data(run, {"test": test})
    return list(run.predictions["prediction"])


def example(runs: Sequence[Run], test: datasets.Dataset) -> str:
    """The dialogue in the middle by the last run's ROUGE-L: as text, with a reference and every run's summary."""
    number = best_median_worst(runs[-1])["median"]
    texts = {"reference": test[number]["summaries"][0]}
    texts |= {display_name(run): predictions(run, test)[number] for run in runs}
    return "\n".join([test[number]["dialogue"], "", *(f"{name + ':':16} {text}" for name, text in texts.items())])


def best_median_worst(by: Run) -> dict[str, int]:
    """The numbers of the dialogues on which a run's ROUGE-L is the highest, in the middle, and the lowest."""
    order = np.argsort(-by.scores["rougeL"].to_numpy(), kind="stable").tolist()
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


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
