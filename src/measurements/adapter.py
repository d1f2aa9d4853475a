"""The committed adapter elsewhere than where it was trained.

`python -m measurements committed-adapter` summarizes the sample dialogues, and `... adapter-cpu --dataset DIALOGSUM`
its own test dialogues on a CPU.
"""

import argparse
from dataclasses import asdict, replace

import datasets
import pandas as pd

from dialogue_summarization import data, disk, experiments, hardware, rouge, runs, study
from dialogue_summarization.generation import summarize

from .tables import REFERENCE

ADAPTER = REFERENCE / "smollm2-dialogsum" / "lora-balanced" / "seed-0"


def write() -> None:
    """Summarize the quickstart's test dialogues with the adapter, in the quickstart's decoding, and record it."""
    run = runs.read(ADAPTER)
    quickstart = experiments.experiment("quickstart")
    splits = data.load(quickstart)
    test, bundle = splits["test"], study.load_run(run)
    with hardware.Meter() as meter:
        texts = summarize(bundle, list(test["dialogue"]), quickstart.generation)
    config = replace(
        run.config,
        experiment="quickstart-adapter",
        dataset=quickstart.dataset,
        generation=asdict(quickstart.generation),
        dialogues=run.config.dialogues | {"test": len(test)},
        data_fingerprint=data.fingerprint(splits),
        split_fingerprints={split: data.fingerprint({split: rows}) for split, rows in splits.items()},
    )
    scores = rouge.score_dialogues(texts, test["summaries"]).set_index(pd.Index(test["id"], name="id"))
    metrics = {name: value for name, value in run.metrics.items() if not name.startswith("generate_")}
    metrics |= {name: round(float(value), 6) for name, value in scores.mean().items()}
    metrics |= {"dialogues": len(test), "references": sum(map(len, test["summaries"]))} | meter.costs("generate")
    folder = REFERENCE / "quickstart-adapter" / "lora-balanced" / "seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_json(folder / "config.json", asdict(config))
    disk.write_csv(folder / "training_log.csv", run.log)
    runs.write_results(folder, texts, scores.round(6), metrics, runs.environment())


def measure_on_cpu(record: dict[str, object], splits: datasets.DatasetDict, options: argparse.Namespace) -> None:
    """ROUGE of its summaries of the test dialogues on this machine, beside the record's, which are a GPU's."""
    run, test = runs.read(ADAPTER), splits["test"]
    with hardware.Meter() as meter:
        texts = summarize(study.load_run(run), list(test["dialogue"]), run.experiment.generation)
    record |= {"dialogues": len(test), "same_summaries": sum(map(str.__eq__, texts, run.predictions["prediction"]))}
    for name, value in rouge.score_dialogues(texts, test["summaries"]).mean().items():
        record |= {name: round(float(value), 4), f"{name}_recorded": round(run.metrics[name], 4)}
    record |= meter.costs("generate")
