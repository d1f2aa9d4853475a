"""Summaries of least Bayes risk from a run's model: `python -m dialogue_summarization.mbr RUN --dataset SOURCE`.

Of several summaries drawn for a dialogue, the one that agrees best with the others: if the draws are like what humans
would write, it has the highest expected score (Kumar and Byrne 2004, aclanthology.org/N04-1022). The draws are
candidates and references alike, and repeated ones count (Eikema and Aziz 2020, arXiv 2005.10283; Freitag et al. 2022,
arXiv 2111.09388). Agreement is the mean of ROUGE-1, -2 and -L, the measure itself, so these scores are reported apart.

On the test split it leaves `mbr-N.csv` (id, prediction) and `mbr-N.json` (scores) in the run's folder; on validation,
where temperature and number are chosen, the scores alone, a file a setting.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from . import data, hardware, runs, study
from .experiments import ConfigurationError, Generation
from .generation import Sampling, summarize
from .models import Model
from .packaged import ModelError
from .report import PredictionsError, flat, texts_of
from .rouge import MEAN_OF, TYPES, agreement, score_all
from .significance import compare, mean_with_interval


def draw(
    model: Model, dialogues: Sequence[str], generation: Generation, sampling: Sampling, samples: int, seed: int = 0
) -> list[list[str]]:
    """So many summaries of each dialogue, drawn independently; the same for the same seed on the same machine."""
    torch.manual_seed(seed)
    repeated = [dialogue for dialogue in dialogues for _ in range(samples)]
    texts = summarize(model, repeated, replace(generation, num_beams=1), sampling=sampling)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def choose(samples: Sequence[str]) -> str:
    """The one of several summaries that agrees best with the others; of equals the first."""
    return samples[int(np.argmax(agreement(samples)))]


def dialogues_of(run: runs.Run, source: str, split: str) -> datasets.Dataset:
    """A run's test dialogues; or those of validation by which settings are chosen, without what nearly is in train.

    Raises:
        DataError: The source does not hold the data that the run was made with.
    """
    splits = data.load(replace(run.experiment, dataset=source, dialogues=run.config.dialogues))
    if data.fingerprint(splits) != run.config.data_fingerprint:
        raise data.DataError(f"{source} is not the data that {run.folder} was made with. Name that with --dataset.")
    return splits["test"] if split == "test" else data.unseen(splits["validation"], splits["train"])


def decode(
    run: runs.Run, rows: datasets.Dataset, split: str, samples: int, sampling: Sampling, seed: int = 0
) -> tuple[list[str], dict[str, Any]]:
    """Summaries of least risk of a run's dialogues, and their scores beside those of the run's own.

    Raises:
        ConfigurationError: The run's weights are not there.
    """
    model, dialogues, generation = study.model_of(run), list(rows["dialogue"]), run.experiment.generation
    start = time.perf_counter()
    drawn = draw(model, dialogues, generation, sampling, samples, seed)
    sampled = time.perf_counter()
    chosen = [choose(several) for several in drawn]
    seconds = {"sample_seconds": sampled - start, "choose_seconds": time.perf_counter() - sampled}
    own = texts_of(run, rows) if split == "test" else summarize(model, dialogues, generation)
    scores, others = (score_all(texts, list(rows["summaries"])) for texts in (chosen, own))
    gaps = {name: compare(scores[name], others[name]) for name in TYPES}
    found: dict[str, Any] = {"key": run.config.key, "split": split, "dialogues": len(rows), "samples": samples}
    found |= {**asdict(sampling), "seed": seed, "agreement": f"mean F1 of {', '.join(MEAN_OF)}"}
    found |= {"distinct_samples": round(float(np.mean([len(set(several)) for several in drawn])), 2)}
    found |= _flat({name: mean_with_interval(scores[name]) for name in TYPES})
    found["own"] = _flat({name: mean_with_interval(others[name]) for name in TYPES})
    found["over_own"] = _flat({name: (gap.mean, (gap.low, gap.high)) for name, gap in gaps.items()})
    return chosen, found | {name: round(value, 2) for name, value in seconds.items()} | runs.environment()


def _flat(entries: Mapping[str, tuple[float, tuple[float, float]]]) -> dict[str, float]:
    return {key: number for name, entry in entries.items() for key, number in flat(name, *entry).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Decode the runs that are named, a record each; 1 where one cannot be."""
    parser = argparse.ArgumentParser("mbr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or its name as smollm2-dialogsum/full")
    parser.add_argument("--dataset", metavar="SOURCE", help="a Hub id or a folder (default: the run's own)")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="a dialogue (default: 16)")
    parser.add_argument("--temperature", type=float, default=Sampling.temperature, help="(default: %(default)s)")
    parser.add_argument("--epsilon", type=float, default=Sampling.epsilon, help="least probability of a token that is "
                        "drawn (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    options = parser.parse_args(arguments)
    sampling, stem = Sampling(options.temperature, options.epsilon), f"mbr-{options.samples}"
    try:
        if options.samples < 2 or options.temperature <= 0 or not 0 <= options.epsilon < 1:
            raise ConfigurationError("--samples is 2 or more, --temperature above 0, --epsilon from 0 to below 1.")
        for run in runs.find(options.run, reference=False):
            rows = dialogues_of(run, options.dataset or run.config.dataset, options.split)
            with hardware.quiet():
                texts, found = decode(run, rows, options.split, options.samples, sampling, options.seed)
            if options.split == "test":
                runs.write_predictions(run.folder / f"{stem}.csv", rows["id"], texts)
            else:
                stem = f"mbr-{options.samples}-validation-{options.temperature:g}-{options.epsilon:g}"
            runs.write_json(run.folder / f"{stem}.json", found)
            scores = ", ".join(f"{name} {found[name]:.4f} (own {found['own'][name]:.4f})" for name in MEAN_OF)
            print(f"{run.folder / stem}.json: {scores}")
    except (ConfigurationError, data.DataError, runs.RecordError, PredictionsError, ModelError,
            hardware.NotEnoughMemory) as error:  # fmt: skip
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
