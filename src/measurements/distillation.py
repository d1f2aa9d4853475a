"""Training once more on summaries that a model wrote itself: `python -m measurements distill DATASET TARGET RUN ...`.

For every training dialogue each run draws summaries, and one of them is chosen: by minimum Bayes risk (Finkelstein and
Freitag 2023, arXiv 2309.10966), or by the reference. `TARGET` then holds a data set per choice, with the validation and
test dialogues as they were, and `average`, a model with the mean of the runs' weights. `study smollm2-dialogsum` trains
with them: `--dataset TARGET/mbr --model TARGET/average`.
"""

import json
import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from dialogue_summarization import data, report, runs, study
from dialogue_summarization.evaluation import mbr, statistics
from dialogue_summarization.generation import summarize
from dialogue_summarization.rouge import score_dialogues

from .tables import MEASURES, REFERENCE

SAMPLES = 3  # per run and dialogue
TOKENS = 1 << 20  # of a batch: the largest that 140 GB hold
RECORD = REFERENCE / "smollm2-dialogsum" / "distillation.csv"  # test scores, a row per recipe, seed and dialogue
TITLES = {
    "full": "full, three seeds",
    "average": "mean of their weights",
    "mbr": "and trained on, with summaries of minimum Bayes risk",
    "reference": "and trained on, with summaries nearest to the reference",
}


def write(source: str, target: str, *folders: str) -> None:
    """Average the runs in `folders`, which have whole models, draw from each, and write the data sets."""
    found, splits, out = [runs.read(Path(folder)) for folder in folders], data.load_source(source), Path(target)
    average([run.weights for run in found], out / "average")
    drawn = [draw(run, list(splits["train"]["dialogue"]), seed) for seed, run in enumerate(found)]
    candidates = [[text for texts in several for text in texts] for several in zip(*drawn, strict=True)]
    (out / "candidates.json").write_text(json.dumps(candidates), encoding="utf-8")  # they take minutes
    references = [summaries[0] for summaries in splits["train"]["summaries"]]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        for name, choose in CHOICES.items():
            chosen = list(processes.map(choose, candidates, references, chunksize=200))
            write_dataset(splits, chosen, out / name)


def average(folders: Sequence[Path], target: Path) -> None:
    """A model whose weights are the mean of several, with the files of the first."""
    shutil.copytree(folders[0], target)
    several = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {name: torch.stack([weights[name] for weights in several]).mean(dim=0) for name in several[0]}
    save_file(mean, target / "model.safetensors", {"format": "pt"})


def draw(run: runs.Run, dialogues: list[str], seed: int) -> list[list[str]]:
    """`SAMPLES` summaries of each dialogue, drawn as for minimum Bayes risk."""
    torch.manual_seed(seed)
    repeated = [dialogue for dialogue in dialogues for _ in range(SAMPLES)]
    greedy = replace(run.experiment.generation, num_beams=1)
    texts = summarize(study.load_run(run), repeated, greedy, overrides=mbr.SAMPLING, tokens=TOKENS)
    texts = [text.replace("\ufffd", "") for text in texts]  # half a character: a data set's texts are whole
    return [texts[start : start + SAMPLES] for start in range(0, len(texts), SAMPLES)]


def agreeing(texts: Sequence[str], reference: str) -> str:
    """The text of minimum Bayes risk, whatever the reference."""
    return mbr.select(texts)


def nearest(texts: Sequence[str], reference: str) -> str:
    """The text with the highest mean of ROUGE-1, -2 and -L."""
    scores = score_dialogues(texts, [[reference]] * len(texts))[list(mbr.MEAN_OF)].mean(axis=1)
    return texts[int(np.argmax(scores))]


def write_dataset(splits: datasets.DatasetDict, chosen: Sequence[str], folder: Path) -> None:
    """The splits as files, the training dialogues with the chosen summary beside their reference."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        table = rows.select_columns(["id", "dialogue"]).to_pandas()
        more = [[text] for text in chosen] if split == "train" else [[]] * len(rows)
        table["summary"] = [own + other for own, other in zip(rows["summaries"], more, strict=True)]
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
