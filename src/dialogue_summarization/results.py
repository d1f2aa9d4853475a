"""The results of an experiment as files that others can cite: `results.md` to read, `results.csv` to compute with."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import pandas as pd

from . import comparison, runs
from .report import HEADINGS, label, signature, to_markdown, with_interval
from .rouge import TYPES
from .systems import of_runs

VERSIONS = ("python", "torch", "transformers", "peft", "rouge-score", "commit")
BAYES_RISK = (
    "Of several summaries drawn from the model the one that agrees best with the others (mean of ROUGE-1, -2 and -L): "
    "apart, since it optimizes the measure. What is gained is over the same run's own summaries, scored above."
)


def table(made: Sequence[runs.Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row a run, each seed apart: what it is, its scores with intervals, its costs, and where it was made."""
    rows = []
    for run in made:
        [one] = of_runs([run], test)
        row: dict[str, object] = {"run": run.name, "seed": run.config.seed, "model": Path(run.config.model).name}
        for name in TYPES:
            row |= one.flat(name)
        row |= {name: value for name, value in run.metrics.items() if name not in TYPES}
        row |= {"data_hash": run.config.data_fingerprint, "model_hash": run.config.model_fingerprint}
        row |= {"key": run.config.key, "date": run.environment["date"], "device": run.environment["device"]}
        row |= {name: run.environment.get(name, "") for name in VERSIONS}
        rows.append(row | {"signature": signature(test)})
    return pd.DataFrame(rows)


def by_minimum_bayes_risk(made: Sequence[runs.Run]) -> pd.DataFrame:
    """A row a record that module `mbr` left in a run's folder: scores, what is gained over the run's own, and cost."""
    rows = []
    for run in made:
        for path in sorted(run.folder.glob("mbr-*.csv")):
            found = runs.read_json(path.with_suffix(".json"))
            row = {"run": label(run), "samples": found["samples"], "temperature": found["temperature"]}
            for name in TYPES:
                row[HEADINGS[name]] = with_interval(found[name], (found[f"{name}_low"], found[f"{name}_high"]))
            gain = found["over_own"]
            for name in ("rouge1", "rougeL"):
                bounds = gain[f"{name}_low"], gain[f"{name}_high"]
                row[f"{HEADINGS[name]} gained"] = with_interval(gain[name], bounds, "+.3f")
            row["seconds"] = f"{found['sample_seconds'] + found['choose_seconds']:.0f}"
            rows.append(row | {"device": found["device"]})
    return pd.DataFrame(rows).set_index("run") if rows else pd.DataFrame()


def text(made: Sequence[runs.Run], test: datasets.Dataset) -> str:
    """The same to read: the table with baselines and humans, every difference in a sentence, and how it was made."""
    systems = comparison.everyone(made, test)
    ours = [one for one in systems if one.kind == "run"]
    first = made[0]
    places = sorted({f"{run.environment['device']} ({run.environment['system']})" for run in made})
    risk = by_minimum_bayes_risk(made)
    about = {
        "scores": f"`{signature(test)}`",
        "seeds": ", ".join(map(str, sorted({run.config.seed for run in made}))),
        "devices": ", ".join(places),
        "data": f"`{first.config.data_fingerprint}`",
        "base model": f"{Path(first.config.model).name}, `{first.config.model_fingerprint}`",
        "versions": ", ".join(f"{name} {_each(made, name)}" for name in VERSIONS),
        "runs": ", ".join(f"{label(run)} `{run.config.key}`" for run in made),
    }
    parts = [
        f"# Results of {first.config.experiment}",
        "Mean F1 with 95 % intervals over dialogues (bootstrap; over seeds too where there are several: their number, "
        "lowest and highest ROUGE-L stand beside). *lead-2* is a dialogue's first two turns. *Way to humans*: where "
        "ROUGE-L lies between the best baseline (0 %) and humans against each other (100 %); no column where they are "
        "not clearly above it.",
        to_markdown(comparison.standings(systems, test)),
        *(["## Is LoRA as good as full fine-tuning?", asked] if (asked := comparison.planned(ours)) else []),
        "## Differences in ROUGE-L",
        "\n".join(f"- {line}" for line in comparison.sentences(ours, "rougeL")) or "There is one system.",
        "p-values by approximate randomization, corrected for the number of pairs above (Holm; fewer runs are fewer "
        'pairs); "as good as" by two one-sided tests with a margin of 0.01 ROUGE-1.',
        comparison.resolution(ours, "rougeL"),
        *(["## Decoded by minimum Bayes risk", BAYES_RISK, to_markdown(risk)] if len(risk) else []),
        "## How they were made",
        "\n".join(f"- {name}: {value}" for name, value in about.items()),
    ]
    return "\n\n".join(parts).replace(" (reference)", "") + "\n"  # the file lies beside the records themselves


def _each(made: Sequence[runs.Run], name: str) -> str:
    return " and ".join(sorted({run.environment.get(name, "?") for run in made}))


def write(made: Sequence[runs.Run], test: datasets.Dataset, folder: Path) -> list[Path]:
    """Write both files into a folder of records, and name them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(text(made, test), encoding="utf-8", newline="\n")
    runs.write_csv(folder / "results.csv", table(made, test))
    return [folder / "results.md", folder / "results.csv"]
