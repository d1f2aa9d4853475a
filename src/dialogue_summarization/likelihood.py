"""Does the model know better? After FacEval (Wang et al. 2022, arXiv 2210.11777): which of two summaries is likelier.

For each test dialogue a model should find the reference likelier than the same reference made wrong, and than one of
another dialogue. It needs nothing but the model, and sees what it knows beyond what it happens to write.
"""

from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from . import corruptions, hardware, processes
from .models import Model, count_parameters
from .report import label
from .runs import Run
from .significance import interval
from .tokenization import IGNORED

WEIGHTS_ON_A_CPU = 10e6  # of larger models the test takes minutes there: a second for each prompt and summary


def pairs(test: datasets.Dataset) -> list[tuple[int, str, str, str]]:
    """What is compared: the dialogue's place, the kind of error, a reference, and the wrong summary.

    The reference is the dialogue's first that the change applies to. The summary of another dialogue is the next one's.
    """
    found = []
    several = list(test["summaries"])
    for place, dialogue in enumerate(test["dialogue"]):
        for kind, corrupt in corruptions.KINDS.items():
            for reference in several[place]:
                wrong = corrupt(reference, dialogue)
                if wrong is not None and wrong != reference:
                    found.append((place, kind, reference, wrong))
                    break
        other = several[(place + 1) % len(several)][0]
        if other not in several[place]:
            found.append((place, corruptions.OTHER, several[place][0], other))
    return found


@torch.no_grad()
def log_likelihoods(
    model: Model, dialogues: Sequence[str], summaries: Sequence[str], batch_size: int | None = None
) -> np.ndarray:
    """The mean log-likelihood of a token of each summary behind its dialogue's prompt, its end included (nats).

    The mean, since of a longer summary the sum is lower whatever it says.
    """
    batch_size = batch_size or hardware.micro_batch(64)
    shift = model.family.label_shift
    rows = [model.family.encode(*pair) for pair in zip(dialogues, summaries, strict=True)]
    order = sorted(range(len(rows)), key=lambda number: rows[number]["length"])
    found = np.zeros(len(rows))
    was_training = model.network.training
    model.network.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = model.family.collate([rows[number] for number in chosen])
        batch = {name: value.to(model.network.device) if torch.is_tensor(value) else value
                 for name, value in batch.items()}  # fmt: skip
        labels = batch.pop("labels")[:, shift:]
        with hardware.autocast():
            logits = model.network(**batch).logits
        logits = logits[:, : logits.shape[1] - shift].float()
        losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        found[chosen] = (-losses.sum(1) / (labels != IGNORED).sum(1)).double().cpu().numpy()
    model.network.train(was_training)
    return found


def is_quick(network: torch.nn.Module) -> bool:
    """Whether the test takes seconds: on a GPU, or with a small model."""
    return hardware.device().type != "cpu" or count_parameters(network)["parameters"] < WEIGHTS_ON_A_CPU


def run_test(model: Model, test: datasets.Dataset) -> pd.DataFrame:
    """A row a pair, as records keep it: `id, kind, reference, wrong`, the last two as `log_likelihoods` gives them."""
    compared = pairs(test)
    dialogues = list(test["dialogue"])
    texts = dict.fromkeys((place, text) for place, _, *both in compared for text in both)  # each once
    scored = processes.shared(
        lambda some: log_likelihoods(model, [dialogues[place] for place, _ in some], [text for _, text in some]),
        list(texts),
    )
    value = dict(zip(texts, np.round(scored, 4), strict=True))
    names = list(test["id"])
    return pd.DataFrame(
        [(names[place], kind, value[place, right], value[place, wrong]) for place, kind, right, wrong in compared],
        columns=["id", "kind", "reference", "wrong"],
    )


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a run, a column a kind of error: how often the reference is likelier, with its interval; 50 % is chance."""
    rows = []
    for run in runs:
        row = {"run": label(run)} | ({"": "not measured: it takes a GPU"} if run.likelihood.empty else {})
        for kind, entries in run.likelihood.groupby("kind", sort=False) if len(run.likelihood) else ():
            right = (entries["reference"] > entries["wrong"]).to_numpy(dtype=float)
            low, high = interval(right)
            row[f"{kind} (n = {len(right)})"] = f"{right.mean():.0%} [{low:.0%}, {high:.0%}]"
        rows.append(row)
    return pd.DataFrame(rows).set_index("run").fillna("–")
