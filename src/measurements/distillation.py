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
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dialogue_summarization import data, runs, study
from dialogue_summarization.evaluation import mbr
from dialogue_summarization.generation import summarize
from dialogue_summarization.rouge import scorer_for

SAMPLES = 3  # per run and dialogue
TOKENS = 1 << 20  # of a batch: the largest that 140 GB hold
CHOICES = ("mbr", "reference")


def write(source: str, target: str, *folders: str, samples: int = SAMPLES) -> None:
    """Average the runs in `folders`, which have whole models, draw from each, and write the data sets."""
    found, splits, out = [runs.read(Path(folder)) for folder in folders], data.load_source(source), Path(target)
    average([run.weights for run in found], out / "average")
    train = splits["train"]
    drawn = [draw(run, list(train["dialogue"]), samples, seed) for seed, run in enumerate(found)]
    candidates = [[text for texts in several for text in texts] for several in zip(*drawn, strict=True)]
    for choice in CHOICES:
        write_dataset(splits, choose(choice, candidates, train), out / choice)


def average(folders: Sequence[Path], target: Path) -> None:
    """A model whose weights are the mean of several, with the files of the first."""
    shutil.copytree(folders[0], target)
    several = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {name: torch.stack([weights[name] for weights in several]).mean(dim=0) for name in several[0]}
    save_file(mean, target / "model.safetensors", {"format": "pt"})


def draw(run: runs.Run, dialogues: list[str], samples: int, seed: int) -> list[list[str]]:
    """So many summaries of each dialogue, drawn as for minimum Bayes risk."""
    torch.manual_seed(seed)
    repeated = [dialogue for dialogue in dialogues for _ in range(samples)]
    greedy = replace(run.experiment.generation, num_beams=1)
    texts = summarize(study.load_run(run), repeated, greedy, overrides=mbr.SAMPLING, tokens=TOKENS)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def choose(choice: str, candidates: Sequence[Sequence[str]], train: datasets.Dataset) -> list[str]:
    """One of each dialogue's candidates, by one of `CHOICES`."""
    chooser = mbr.select if choice == "mbr" else nearest
    rest = () if choice == "mbr" else ([summaries[0] for summaries in train["summaries"]],)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        return list(processes.map(partial(chooser), candidates, *rest, chunksize=200))


def nearest(texts: Sequence[str], reference: str) -> str:
    """The text with the highest mean of ROUGE-1, -2 and -L."""
    rouge = scorer_for([texts], mbr.MEAN_OF)
    scores = [np.mean([score.fmeasure for score in rouge.score(reference, text).values()]) for text in texts]
    return texts[int(np.argmax(scores))]


def write_dataset(splits: datasets.DatasetDict, chosen: Sequence[str], folder: Path) -> None:
    """The splits as files, the training dialogues with the chosen summary beside their reference."""
    for split, rows in splits.items():
        more = [[text] for text in chosen] if split == "train" else [[] for _ in rows]
        lines = [
            json.dumps({"id": row["id"], "dialogue": row["dialogue"], "summary": row["summaries"] + extra})
            for row, extra in zip(rows, more, strict=True)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
