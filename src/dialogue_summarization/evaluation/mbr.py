"""Summaries of minimum Bayes risk: of several drawn for a dialogue, the one that agrees best with the others.

If the draws are like what humans would write, it has the highest expected score (Kumar and Byrne 2004,
aclanthology.org/N04-1022; Eikema and Aziz 2020, arXiv 2005.10283; Freitag et al. 2022, arXiv 2111.09388). Agreement is
the mean of ROUGE-1, -2 and -L, the measure itself, so these scores are reported apart.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

from .. import data, runs
from ..experiments import Generation
from ..generation import summarize
from ..models import ModelBundle
from ..report import predictions
from ..rouge import TYPES, scorer_for
from .statistics import compare
from .systems import from_texts, to_columns

MEAN_OF = ("rouge1", "rouge2", "rougeL")  # what the agreement is the mean of
# Tokens less likely than epsilon are never drawn (Hewitt et al. 2022, arXiv 2210.15191), which Freitag et al. (2023,
# arXiv 2305.09860) found best for minimum Bayes risk. Without top_k, generate keeps to the 50 likeliest.
SAMPLING = {"do_sample": True, "temperature": 1.0, "epsilon_cutoff": 0.02, "top_k": 0}
Settings = Mapping[str, object]  # arguments of GenerationConfig that replace those of SAMPLING


def sample(
    bundle: ModelBundle, dialogues: list[str], generation: Generation, settings: Settings, samples: int, seed: int = 0
) -> list[list[str]]:
    """So many summaries per dialogue, drawn independently; the same for the same seed on the same machine."""
    torch.manual_seed(seed)
    repeated = [dialogue for dialogue in dialogues for _ in range(samples)]
    texts = summarize(bundle, repeated, replace(generation, num_beams=1), overrides={**SAMPLING, **settings})
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def mbr_utility(texts: Sequence[str], rouge: RougeScorer) -> np.ndarray:
    """How far each text agrees with the others (texts,): its mean over them of the scorer's F1, averaged."""
    agreement = np.zeros((len(texts), len(texts)))
    for one, other in itertools.combinations(range(len(texts)), 2):  # F1 is the same both ways
        scores = rouge.score(texts[one], texts[other]).values()
        agreement[one, other] = agreement[other, one] = np.mean([score.fmeasure for score in scores])
    return agreement.sum(axis=1) / (len(texts) - 1)


def select(texts: Sequence[str], rouge: RougeScorer) -> str:
    """The one of several summaries that agrees best with the others by `mbr_utility`; of equals the first."""
    return texts[int(np.argmax(mbr_utility(texts, rouge)))]


def dialogues_of(run: runs.Run, source: str, split: str) -> Dataset:
    """A run's test dialogues; or those of validation by which settings are chosen, without near-duplicates of train.

    Raises what `runs.load_data` raises.
    """
    splits = runs.load_data(run, source)
    return splits["test"] if split == "test" else data.drop_near_duplicates(splits["validation"], splits["train"])


def decode(
    run: runs.Run, bundle: ModelBundle, rows: Dataset, split: str, samples: int, settings: Settings, seed: int = 0
) -> tuple[list[str], dict[str, object]]:
    """Summaries of minimum risk by a run's model, and a record of their scores beside the run's own."""
    dialogues, generation = list(rows["dialogue"]), run.experiment.generation
    start = time.perf_counter()
    drawn = sample(bundle, dialogues, generation, settings, samples, seed)
    sampled = time.perf_counter()
    rouge = scorer_for(rows["summaries"], MEAN_OF)
    selected = [select(texts, rouge) for texts in drawn]
    end = time.perf_counter()
    own_texts = predictions(run, rows) if split == "test" else summarize(bundle, dialogues, generation)
    chosen, own = (from_texts(run.name, "run", [texts], rows) for texts in (selected, own_texts))
    gaps = {}
    for name in TYPES:
        gap = compare(chosen.scores(name), own.scores(name))
        gaps |= to_columns(name, gap.mean, (gap.low, gap.high))
    settings = {**SAMPLING, **settings}
    record = {"key": run.config.key, "split": split, "dialogues": len(rows), "samples": samples}
    record |= {"temperature": settings["temperature"], "epsilon": settings["epsilon_cutoff"], "seed": seed}
    record |= {"agreement": f"mean F1 of {', '.join(MEAN_OF)}", "own": own.columns(), "over_own": gaps}
    record |= {"distinct_samples": round(float(np.mean([len(set(texts)) for texts in drawn])), 2), **chosen.columns()}
    record |= {"sample_seconds": round(sampled - start, 2), "choose_seconds": round(end - sampled, 2)}
    return selected, record | runs.environment()
