"""The results of an experiment as files that others can cite: `results.md` to read, `results.csv` to compute with."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import pandas as pd

from ..disk import write_csv
from ..report import HEADINGS, display_name, signature
from ..rouge import TYPES
from ..runs import Run, collect, read_json
from .comparison import all_systems, leaderboard, pairwise, planned_comparison
from .systems import from_columns, of_runs

VERSIONS = ("python", "torch", "transformers", "peft", "rouge-score", "commit")
SCORES = """ROUGE F1 as mean and 95 % interval over test dialogues (bootstrap), and over seeds if there are several. \
*lead-2* is the dialogue's first two turns. *form only*: ROUGE-1 against the references of other dialogues; \
*above form*: what the right references add. *cut to fit*: dialogues with more tokens than the model takes. \
*validation loss*: before and after training, in nats per token. \
*seeds*: how many, and the lowest and highest ROUGE-L. *gap closed*: in ROUGE-L, 0 % is the best baseline and 100 % \
the references against each other; left out where these are not clearly better."""
PLANNED = "The one comparison that was planned before the runs were made. Its p-values need no correction."
TESTS = """*p*: permutation test over dialogues; with several seeds, bootstrap over seeds and dialogues. *p (Holm)*: \
corrected for the number of pairs. *p, equivalence test*: below 0.05, two runs are as good as each other within 0.01 \
ROUGE-1. *smallest detectable difference*: found with 80 % power; most smaller ones are missed. *verdict*: "no \
significant difference" does not mean that the two are equal."""
BAYES_RISK = """Several summaries are sampled for each dialogue, and the one that agrees best with the others is kept \
(mean of ROUGE-1, -2 and -L). This optimizes the measure itself, so it is listed separately. *gained*: the difference \
to the run's own summaries above. *samples*, *temperature*: how they were drawn. *seconds*: sampling and choosing."""


def write(runs: Sequence[Run], test: datasets.Dataset, folder: Path) -> list[Path]:
    """Write both files into a folder of records, and name them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(text(runs, test), encoding="utf-8", newline="\n")
    write_csv(folder / "results.csv", table(runs, test))
    return [folder / "results.md", folder / "results.csv"]


def table(runs: Sequence[Run], test: datasets.Dataset) -> pd.DataFrame:
    """A row per run, each seed separately: what it is, its scores with intervals, its costs, and where it was made."""
    rows = []
    for run in runs:
        config = run.config
        row = {"run": run.name, "seed": config.seed, "model": Path(config.model).name}
        row |= of_runs([run], test)[0].columns()
        row |= {name: value for name, value in run.metrics.items() if name not in TYPES}
        row |= {"data_hash": config.data_fingerprint, "model_hash": config.model_fingerprint, "key": config.key}
        row |= {name: run.environment.get(name, "") for name in ("date", "device", *VERSIONS)}
        rows.append(row | {"signature": signature(test)})
    return pd.DataFrame(rows)


def text(runs: Sequence[Run], test: datasets.Dataset) -> str:
    """The same to read: the table with baselines and humans, the tests of all differences, and how it was made."""
    systems = all_systems(runs, test)
    ours = [one for one in systems if one.kind == "run"]
    earlier = collect("earlier", runs[0].folder.parents[1])
    tables = {
        f"# Results of {runs[0].config.experiment}\n\n{SCORES}": leaderboard(systems, test),
        f"## Is LoRA as good as full fine-tuning?\n\n{PLANNED}": planned_comparison(ours),
        f"## Differences in ROUGE-L\n\n{TESTS}": pairwise(ours, "rougeL"),
        f"## Decoded by minimum Bayes risk\n\n{BAYES_RISK}": by_minimum_bayes_risk([*runs, *earlier]),
    }
    sections = []
    for introduction, shown in tables.items():
        if len(shown):
            shown = shown.rename(index=lambda name: name.replace(" (reference)", ""))  # they lie beside the records
            sections += [introduction, shown.to_markdown(disable_numparse=True)]
    made = table(runs, test).astype(str)
    about = ("signature", "seed", "model", "model_hash", "data_hash", "device", *VERSIONS, "key")
    origins = [f"- {name}: {', '.join(made[name].unique())}" for name in about]
    return "\n\n".join([*sections, "## How they were made", "\n".join(origins)]) + "\n"


def by_minimum_bayes_risk(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per record that module `mbr` left in a run's folder: scores, gains over the run's own summaries, cost."""
    rows = []
    for run in runs:
        for path in sorted(run.folder.glob("mbr-*.csv")):
            record = read_json(path.with_suffix(".json"))
            row = {"run": display_name(run), "samples": record["samples"], "temperature": record["temperature"]}
            row |= {HEADINGS[name]: from_columns(record, name) for name in TYPES}
            over = record["over_own"]
            row |= {f"{HEADINGS[name]} gained": from_columns(over, name, "+.3f") for name in ("rouge1", "rougeL")}
            row["seconds"] = f"{record['sample_seconds'] + record['choose_seconds']:.0f}"
            rows.append(row | {"device": record["device"]})
    return pd.DataFrame(rows).set_index("run") if rows else pd.DataFrame()
