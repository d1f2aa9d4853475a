"""The committed adapter's summaries of the sample dialogues: `python -m measurements committed-adapter`."""

from dataclasses import asdict, replace

import pandas as pd

from dialogue_summarization import data, disk, experiments, hardware, rouge, runs, study
from dialogue_summarization.generation import summarize

from .tables import REFERENCE


def write() -> None:
    """Summarize the quickstart's test dialogues with the adapter, in the quickstart's decoding, and record it."""
    run = runs.read(REFERENCE / "smollm2-dialogsum" / "lora-balanced" / "seed-0")
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
