"""Make anew what README, guide and docs show of the records: tables between marks, figures and result files.

`python -m measurements documents`; tests compare. A block stands between `<!-- name -->` and `<!-- /name -->`.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import datasets
import nbformat
import numpy as np
import pandas as pd

from dialogue_summarization import data, experiments, report, runs
from dialogue_summarization.evaluation import comparison, results, statistics, systems
from dialogue_summarization.rouge import TYPES

from . import tables
from .sweep import report as sweep_report

REFERENCE = runs.OUTPUTS / "reference"
SWEEP = REFERENCE / "smollm2-dialogsum" / "sweep"
GUIDE = "GPU_OPTIMIZATION_GUIDE.md"
TWO_GPUS = tables.FOLDER / "two-gpus"  # what was measured on two GPUs, and on one beside it
DATASETS = {"quickstart": None, "smollm2-dialogsum": data.ROOT.parent / "shared" / "dialogsum"}


def write() -> None:
    """Write every block, figure and result file."""
    for name, (document, content) in BLOCKS.items():
        path, text = data.ROOT / document, content()
        text = pattern(name).sub(lambda _, text=text: f"\n{text}\n\n", path.read_text("utf-8"))
        path.write_text(text, encoding="utf-8", newline="\n")
    for path, (notebook, number) in FIGURES.items():
        path.write_bytes(drawn(notebook, number))
    for name in DATASETS:
        made, test = reference(name)
        results.write(made, test, REFERENCE / name)
        comparison.standings(comparison.all_systems(made, test)).savefig(REFERENCE / name / "standings.png", dpi=110)


def pattern(name: str) -> re.Pattern:
    """What stands between the marks of a block."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def drawn(notebook: str, number: int) -> bytes:
    """A figure of an executed notebook."""
    cells = nbformat.read(data.ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    return base64.b64decode([shown["image/png"] for shown in outputs if "image/png" in shown][number])


def reference(name: str) -> tuple[list[runs.Run], datasets.Dataset]:
    """The committed records of an experiment, and the test split that they are of."""
    test = data.load(experiments.experiment(name, dataset=DATASETS[name]))["test"]
    return runs.collect(name, "nowhere"), test


def signature(name: str) -> str:
    """How the scores of an experiment were computed."""
    return f"`{report.signature(reference(name)[1])}`"


def study(name: str) -> str:
    """The results of an experiment: scores, and costs as means over seeds."""
    made, test = reference(name)
    ours = systems.of_runs(made, test)
    shown = [report.HEADINGS[name] for name in TYPES] + (["seeds"] if len(ours) < len(made) else [])
    table = comparison.leaderboard(ours).loc[[one.name for one in ours], shown]
    costs = pd.DataFrame([pd.DataFrame([run.metrics for run in one.runs]).mean() for one in ours]).set_axis(table.index)
    shares = (costs["trainable_parameters"] / costs["parameters"]).map("{:.2%}".format)
    table["trained"] = shares.replace("0.00%", "none")
    for heading, key in (("training s", "train_seconds"), ("summaries s", "generate_seconds")):
        table[heading] = costs[key].map("{:.0f}".format, na_action="ignore").fillna("–")
    table = table.set_axis(pd.Index([one.runs[0].name for one in ours], name="run"))
    return joined(table, signature(name), origin(run.environment for run in made))


def choosing() -> str:
    """What the sweep says of the literature's claims, and its methods."""
    grid, trials = (sweep_report.load(SWEEP, name) for name in ("grid", "methods"))
    tested = sweep_report.load_tested(SWEEP, "methods")
    methods = sweep_report.methods(tested, trials).drop(columns=["training s", "adapter MB"])
    made = origin(pd.concat([grid, trials]).to_dict("records"))
    return joined(sweep_report.claims(grid, tested), methods, signature("smollm2-dialogsum"), made)


def two_gpus_study() -> str:
    """The study's runs that were made by two GPUs too."""
    by_one, by_two = runs.collect("smollm2-dialogsum", "nowhere"), runs.collect("smollm2-dialogsum", TWO_GPUS)
    made = origin(run.environment for run in by_two)
    return joined(made_twice(of_one_key(by_one, by_two)), signature("smollm2-dialogsum"), made)


def trained_twice() -> str:
    """The study's runs that were trained once more, and LoRA against full fine-tuning by each training and by both."""
    before = runs.collect("repeats", REFERENCE / "smollm2-dialogsum")
    pairs = of_one_key(before, runs.collect("smollm2-dialogsum", "nowhere"))
    scores, rows = {}, []
    for name in ("full", "lora-balanced"):  # (seeds, trainings, dialogues)
        scores[name] = np.array([[run.scores["rouge1"] for run in pair] for pair in pairs if pair[0].name == name])
    for trained, which in (("first", [0]), ("now", [1]), ("both together", [0, 1])):
        lora, full = (scores[name][:, which].mean(axis=1) for name in ("lora-balanced", "full"))
        gap = statistics.compare(lora, full)
        rows.append((trained, report.with_interval(gap.mean, (gap.low, gap.high), "+.3f"), f"{gap.p_equivalent:.3f}"))
    asked = pd.DataFrame(rows, columns=["trained", "lora-balanced − full, ROUGE-1", "p (TOST)"]).set_index("trained")
    made = origin(run.environment for run in before)
    return joined(made_twice(pairs), asked, signature("smollm2-dialogsum"), made)


def of_one_key(some: list[runs.Run], others: list[runs.Run]) -> list[tuple[runs.Run, runs.Run]]:
    """Runs with those among the others that ask for the same."""
    return [(one, other) for one in some for other in others if one.config.key == other.config.key]


def made_twice(pairs: list[tuple[runs.Run, runs.Run]]) -> pd.DataFrame:
    """What making a run again, or on more GPUs, changes."""
    rows = []
    for one, other in pairs:
        gaps = {kind: statistics.compare(other.scores[kind], one.scores[kind]) for kind in tables.MEASURES}
        row = {"run": one.name, "seed": one.config.seed}
        row["ROUGE-1"] = " → ".join(f"{run.scores['rouge1'].mean():.3f}" for run in (one, other))
        for kind, gap in gaps.items():
            row[f"{report.HEADINGS[kind]} changed by"] = report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
        seconds = " → ".join(tables.cell(run.metrics, "train_seconds", ".0f") for run in (one, other))
        rows.append(row | {"p (TOST, ROUGE-1)": f"{gaps['rouge1'].p_equivalent:.3f}", "training s": seconds})
    return pd.DataFrame(rows).set_index("run")


def joined(*parts: pd.DataFrame | str) -> str:
    """Tables as Markdown, and lines, with a blank line between them."""
    texts = []
    for part in parts:
        if isinstance(part, pd.DataFrame):
            flat = part.reset_index()
            lines = [list(flat.columns), ["---"] * len(flat.columns), *flat.astype(str).to_numpy().tolist()]
            part = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        texts.append(part)
    return "\n\n".join(texts)


def origin(environments: Iterable[Mapping[str, object]]) -> str:
    """Where and when, and with which code."""
    known = [(one["date"][:10], one["device"], one["commit"]) for one in environments]
    days, devices, commits = (" and ".join(sorted(set(values))) for values in zip(*known, strict=True))
    return f"Made on {days}, device: {devices} (commit {commits})."


def table(draw: Callable[..., pd.DataFrame], folder: Path = tables.FOLDER, **options: object) -> str:
    """A table of the records in a folder."""
    return joined(draw(tables.load(folder), **options))


BLOCKS = {  # name: document, content
    "quickstart": ("README.md", partial(study, "quickstart")),
    "smollm2-dialogsum": ("README.md", partial(study, "smollm2-dialogsum")),
    "trained-twice": ("docs/how_scores_are_made.md", trained_twice),
    "benchmarks": (GUIDE, partial(table, tables.throughput)),
    "cards": (GUIDE, partial(table, tables.cards)),
    "cards-packed": (GUIDE, partial(table, tables.cards, packed=True)),
    "tried": (GUIDE, partial(table, tables.throughput, tables.FOLDER / "tried")),
    "choosing": (GUIDE, choosing),
    "quantized": (GUIDE, partial(table, tables.quantized_generation)),
    "two-gpus": (GUIDE, partial(table, tables.several_gpus, TWO_GPUS)),
    "two-gpus-study": (GUIDE, two_gpus_study),
}
FIGURES = {  # the notebook that draws each, and which of its figures it is
    tables.FOLDER / "growth.png": ("05_gpu_optimization", 3),
    SWEEP / "rates.png": ("06_lora_against_full", 1),
    SWEEP / "ranks.png": ("06_lora_against_full", 2),
}
