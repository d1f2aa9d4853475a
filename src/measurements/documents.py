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

from . import conventions, front_page, peers, recipes, settings_search, tables
from .sweep import report as sweep_report
from .tables import REFERENCE

STUDY = REFERENCE / "smollm2-dialogsum"
SWEEP = STUDY / "sweep"
GUIDE = "GPU_OPTIMIZATION_GUIDE.md"
TWO_GPUS = tables.FOLDER / "two-gpus"  # what was measured on two GPUs, and on one beside it
COSTS = (  # column, key in metrics.json, unit, format
    ("training (s)", "train_seconds", 1, "{:.0f}"),
    ("generation (s)", "generate_seconds", 1, "{:.0f}"),
    ("training (GB)", "peak_memory_bytes", 1e9, "{:.1f}"),
    ("generation (GB)", "generate_memory_bytes", 1e9, "{:.1f}"),
)
SWEEP_HEADS = {  # of notebook 06's table: what it is called beside others
    "rate": "learning rate",
    "over balanced": "vs lora-balanced",
    "trained": "trainable parameters",
    "peak GB": "peak memory (GB)",
}
DATASETS = {"quickstart": None, "smollm2-dialogsum": data.ROOT.parent / "shared" / "dialogsum"}


def write() -> None:
    """Write every block, figure and result file."""
    for name, (document, content) in BLOCKS.items():
        path, text = data.ROOT / document, content()
        text = pattern(name).sub(lambda _, text=text: f"{text}\n", path.read_text("utf-8"))
        path.write_text(text, encoding="utf-8", newline="\n")
    front_page.memory_bars().savefig(tables.FOLDER / "memory.png", dpi=110)
    front_page.speed_bars().savefig(tables.FOLDER / "speed.png", dpi=110)
    for name in DATASETS:
        made, test = reference(name)
        results.write(made, test, REFERENCE / name)
        comparison.standings(comparison.all_systems(made, test)).savefig(REFERENCE / name / "standings.png", dpi=110)
    for path, figure in FIGURES.items():
        path.write_bytes(drawn(*figure))


def pattern(name: str) -> re.Pattern:
    """What stands between the marks of a block."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def drawn(notebook: str, code: str) -> bytes:
    """The figure of an executed notebook's cell, by how its code begins."""
    cells = nbformat.read(data.ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    [cell] = [cell for cell in cells if cell.source.startswith(code)]
    [figure] = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return base64.b64decode(figure)


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
    table["trainable parameters"] = shares.replace("0.00%", "none")
    for heading, key, unit, spec in COSTS:
        table[heading] = (costs[key] / unit).map(spec.format, na_action="ignore").fillna("–")
    table = table.set_axis(pd.Index([tables.label(one.runs[0].name) for one in ours], name="run"))
    return joined(table, signature(name), origin(run.environment for run in made))


def choosing() -> str:
    """What the sweep says of the literature's claims, and its methods."""
    grid, trials, further = (sweep_report.load(SWEEP, name) for name in ("grid", "methods", "claims"))
    tested = sweep_report.load_tested(SWEEP, "methods")
    methods = sweep_report.methods(tested, trials).drop(columns=["training s", "adapter MB"])
    methods = methods.rename(columns=SWEEP_HEADS, index=tables.label)
    made = origin(pd.concat([grid, trials, further]).to_dict("records"))
    return joined(sweep_report.claims(grid, tested, further), methods, signature("smollm2-dialogsum"), made)


def main_question() -> str:
    """Whether LoRA is as good as full fine-tuning: the planned test, and what other trainings of the seeds give."""
    now = runs.collect("smollm2-dialogsum", "nowhere")
    first = of_one_key(runs.collect("repeats", STUDY), now)
    earlier = {run.config.key: run for run in runs.collect("earlier", STUDY)}
    trainings = {
        "the answer: three seeds as committed": [(run,) for run in now],
        "with the earlier training of seed 0": [(earlier.get(run.config.key, run),) for run in now],
        "first trainings of the seeds, on H100": [pair[:1] for pair in first],
        "mean of first trainings and committed ones": first,
    }
    rows = {}
    for title, several in trainings.items():
        lora, full = (scores_of(several, name) for name in ("lora-balanced", "full"))
        gap = statistics.compare(full, lora)
        difference = report.with_interval(-gap.mean, (-gap.high, -gap.low), "+.3f")
        rows[title] = {"lora-balanced − full, ROUGE-1": difference, "p (TOST)": f"{gap.p_equivalent:.3f}"}
    return joined(pd.DataFrame.from_dict(rows, orient="index").rename_axis("trainings"))


def scores_of(trainings: list[tuple[runs.Run, ...]], name: str) -> np.ndarray:
    """A method's ROUGE-1 as (seeds, dialogues), the mean over the trainings of a seed."""
    return np.array(
        [np.mean([run.scores["rouge1"] for run in one], axis=0) for one in trainings if one[0].name == name]
    )


def made_again(name: str, folder: Path, *, earlier: bool = False) -> str:
    """The study's runs that were made once more: earlier, by two GPUs, or in fp16."""
    now, others = runs.collect("smollm2-dialogsum", "nowhere"), runs.collect(name, folder)
    pairs = of_one_key(others, now) if earlier else of_one_key(now, others)
    return joined(changes(pairs), signature("smollm2-dialogsum"), origin(run.environment for run in others))


def of_one_key(some: list[runs.Run], others: list[runs.Run]) -> list[tuple[runs.Run, runs.Run]]:
    """Runs with those among the others that ask for the same."""
    return [(one, other) for one in some for other in others if one.config.key == other.config.key]


def changes(pairs: list[tuple[runs.Run, runs.Run]]) -> pd.DataFrame:
    """By how much the second of two runs differs from the first."""
    rows = []
    for one, other in pairs:
        gaps = {kind: statistics.compare(other.scores[kind], one.scores[kind]) for kind in tables.MEASURES}
        row = {"run": tables.label(one.name), "seed": one.config.seed}
        row["ROUGE-1"] = " → ".join(f"{run.scores['rouge1'].mean():.3f}" for run in (one, other))
        for kind, gap in gaps.items():
            row[f"{report.HEADINGS[kind]} change"] = report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
        seconds = " → ".join(tables.cell(run.metrics, "train_seconds", ".0f") for run in (one, other))
        rows.append(row | {"p (TOST, ROUGE-1)": f"{gaps['rouge1'].p_equivalent:.3f}", "training (s)": seconds})
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
    "example": ("README.md", lambda: joined(*front_page.example(*reference("quickstart")))),
    "result": ("README.md", lambda: joined(*front_page.result(*reference("smollm2-dialogsum")))),
    "needs": ("README.md", lambda: joined(front_page.needs(*(reference(name)[0] for name in DATASETS)))),
    "output": ("README.md", lambda: joined(*front_page.output(*reference("quickstart")))),
    "presets": ("README.md", lambda: joined(front_page.presets(reference("smollm2-dialogsum")[0]))),
    "gpus": (GUIDE, lambda: joined(front_page.gpus())),
    "settings": (GUIDE, lambda: joined(settings_search.effects(in_guide=True))),
    "smollm2-dialogsum": ("docs/results.md", partial(study, "smollm2-dialogsum")),
    "main-question": ("docs/results.md", main_question),
    "trained-twice": ("docs/results.md", partial(made_again, "repeats", STUDY, earlier=True)),
    "recipes": ("docs/results.md", lambda: joined(recipes.table(), signature("smollm2-dialogsum"))),
    "quickstart": ("docs/results.md", partial(study, "quickstart")),
    "cpu": ("docs/how_it_is_fast.md", partial(table, peers.table)),
    "conventions": ("docs/how_scores_are_made.md", partial(table, conventions.table)),
    "search": ("docs/settings_search.md", lambda: joined(settings_search.effects(in_guide=False))),
    "choosing": ("docs/settings_search.md", choosing),
    "benchmarks": ("docs/how_it_is_fast.md", partial(table, tables.throughput)),
    "cards": ("docs/how_it_is_fast.md", partial(table, tables.cards)),
    "cards-packed": ("docs/how_it_is_fast.md", partial(table, tables.cards, packed=True)),
    "tried": ("docs/how_it_is_fast.md", partial(table, tables.throughput, tables.FOLDER / "tried")),
    "quantized": ("docs/more_runs.md", partial(table, tables.quantized_generation)),
    "two-gpus": ("docs/several_gpus.md", partial(table, tables.several_gpus, TWO_GPUS)),
    "two-gpus-study": ("docs/several_gpus.md", partial(made_again, "smollm2-dialogsum", TWO_GPUS)),
    "fp16": ("docs/how_it_is_fast.md", partial(made_again, "fp16", STUDY)),
}
FIGURES = {  # the notebook that draws each, and how its cell begins
    tables.FOLDER / "growth.png": ("05_gpu_optimization", "growth, axes ="),
    SWEEP / "rates.png": ("06_lora_against_full", "rates, (ax,) ="),
    SWEEP / "ranks.png": ("06_lora_against_full", "ranks, (ax,) ="),
}
