"""Training once more on summaries that a model wrote itself: `python -m measurements distill DATASET TARGET RUN ...`.

For training dialogues that it has not learned each run draws summaries (a run that has learned all, for all of them).
One is chosen: by minimum Bayes risk (Finkelstein and Freitag 2023, arXiv 2309.10966), or by the reference. `TARGET`
then holds a data set per choice, with the validation and test dialogues as they were, and `average`, a model with the
mean of the runs' weights. `study smollm2-dialogsum` trains with them: `--dataset TARGET/mbr --model TARGET/average`.

`python -m measurements halve DATASET TARGET` writes two data sets with half of the training dialogues each, and
`python -m measurements headroom DATASET RUN` what the best of a run's samples would score.
"""

import json
import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from dialogue_summarization import data, report, runs, study
from dialogue_summarization.evaluation import mbr, statistics
from dialogue_summarization.rouge import score_dialogues

from .tables import MEASURES, REFERENCE

SAMPLES = 16  # per run and dialogue
RECORD = REFERENCE / "smollm2-dialogsum" / "distillation.csv"  # test scores, a row per recipe, seed and dialogue
TITLES = {
    "full": "full, three seeds",
    "average": "mean of their weights",
    "mbr": "and trained on, with summaries of minimum Bayes risk",
    "reference": "and trained on, with summaries nearest to the reference",
    "halves": "trained from scratch, with summaries by models that had not seen the dialogue",
    "ranking": "full, trained on with a ranking loss",
    "oracle": "*no system*: of 32 samples the nearest to the references",
}


def write(source: str, target: str, *folders: str) -> None:
    """Average the runs in `folders`, which have whole models, draw from each, and write the data sets."""
    found, splits, out = [runs.read(Path(folder)) for folder in folders], data.load_source(source), Path(target)
    average([run.weights for run in found], out / "average")
    drawn: dict[str, list[str]] = {dialogue: [] for dialogue in splits["train"]["dialogue"]}
    for seed, run in enumerate(found):
        unseen = not_learned(run, list(drawn))
        several = mbr.sample(study.load_run(run), unseen, run.experiment.generation, {}, SAMPLES, seed)
        for dialogue, texts in zip(unseen, several, strict=True):
            drawn[dialogue] += [text.replace("\ufffd", "") for text in texts]  # half a character
    candidates = [drawn[dialogue] for dialogue in splits["train"]["dialogue"]]
    (out / "candidates.json").write_text(json.dumps(candidates), encoding="utf-8")  # they take minutes
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        for name, choose in CHOICES.items():
            chosen = list(processes.map(choose, candidates, splits["train"]["summaries"], chunksize=200))
            write_dataset(splits, out / name, chosen)


def not_learned(run: runs.Run, dialogues: list[str]) -> list[str]:
    """Those of the dialogues that a run was not trained on; all, if it was trained on as many as there are."""
    if run.config.dialogues["train"] >= len(dialogues):
        return dialogues
    learned = set(data.load_source(run.config.dataset)["train"]["dialogue"])
    return [dialogue for dialogue in dialogues if dialogue not in learned]


def halve(source: str, target: str) -> None:
    """Two data sets with every other training dialogue, and all of validation and test."""
    splits = data.load_source(source)
    for start, name in enumerate(("even", "odd")):
        half = splits["train"].select(range(start, len(splits["train"]), 2))
        write_dataset(datasets.DatasetDict(splits | {"train": half}), Path(target) / name)


def headroom(source: str, folder: str) -> None:
    """Print ROUGE of the nearest of a run's samples to the references, which no system has: a limit, not a result."""
    run, test = runs.read(Path(folder)), data.load_source(source)["test"]
    drawn = mbr.sample(study.load_run(run), list(test["dialogue"]), run.experiment.generation, {}, 2 * SAMPLES)
    best = [nearest(texts, references) for texts, references in zip(drawn, test["summaries"], strict=True)]
    print(score_dialogues(best, test["summaries"]).mean().round(4).to_string())


def average(folders: Sequence[Path], target: Path) -> None:
    """A model whose weights are the mean of several, with the files of the first."""
    shutil.copytree(folders[0], target)
    several = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {name: torch.stack([weights[name] for weights in several]).mean(dim=0) for name in several[0]}
    save_file(mean, target / "model.safetensors", {"format": "pt"})


def agreeing(texts: Sequence[str], references: Sequence[str]) -> str:
    """The text of minimum Bayes risk, whatever the references."""
    return mbr.select(texts)


def nearest(texts: Sequence[str], references: Sequence[str]) -> str:
    """The text with the highest mean of ROUGE-1, -2 and -L."""
    scores = score_dialogues(texts, [references] * len(texts))[list(mbr.MEAN_OF)].mean(axis=1)
    return texts[int(np.argmax(scores))]


def write_dataset(splits: datasets.DatasetDict, folder: Path, chosen: Sequence[str] = ()) -> None:
    """The splits as files, the training dialogues with the chosen summary, if there are any, beside their reference."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        table = rows.select_columns(["id", "dialogue"]).to_pandas()
        table["summary"] = list(rows["summaries"])
        if chosen and split == "train":
            table["summary"] = [[*own, text] for own, text in zip(rows["summaries"], chosen, strict=True)]
        table.to_json(folder / f"{split}.jsonl", orient="records", lines=True, force_ascii=False)


CHOICES = {"mbr": agreeing, "reference": nearest}


def table() -> pd.DataFrame:
    """A row per recipe: test scores, how far they are above the mean of the three seeds, and the length in words."""
    scores, rows = pd.read_csv(RECORD), {}
    by_seed = {recipe: dict(list(some.groupby("seed"))) for recipe, some in scores.groupby("recipe")}
    for recipe, title in TITLES.items():
        row = {}
        for measure in MEASURES:
            own, teachers = ([one[measure] for one in by_seed[name].values()] for name in (recipe, "full"))
            gap = statistics.compare(own, teachers)
            change = report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
            row[report.HEADINGS[measure]] = f"{np.mean(own):.3f}" + (f", {change}" if recipe != "full" else "")
        words = np.mean([one["words"].mean() for one in by_seed[recipe].values()])
        rows[title] = row | {"words": f"{words:.1f}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
