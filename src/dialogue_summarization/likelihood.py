"""Does the model know better? After FacEval (Wang et al. 2022, arXiv 2210.11777): which of two summaries is likelier.

For each test dialogue a model should find the reference likelier than the same reference made wrong, and than one of
another dialogue. It needs nothing but the model, and sees what it knows beyond what it happens to write.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from . import corruptions, fitting, processes
from .models import Model, inference, packs
from .report import label
from .runs import Run
from .significance import interval
from .tokenization import IGNORED


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
    model: Model, dialogues: Sequence[str], summaries: Sequence[tuple[int, str]], batch_size: int | None = None
) -> np.ndarray:
    """The mean log-likelihood of a token of each summary behind its dialogue's prompt, its end included (nats).

    The mean, since of a longer summary the sum is lower whatever it says.

    Args:
        model: The model that is asked.
        dialogues: What it reads, each once for all its summaries.
        summaries: Each with the place of its dialogue.
        batch_size: How many dialogues are read at once; the machine decides where it is None.
    """
    rows = model.family.encode_all([dialogues[place] for place, _ in summaries], [text for _, text in summaries])
    batch_size = batch_size or max(
        1, fitting.fits(64, model.network, datasets.Dataset.from_list(rows)).evaluation_batch // 4
    )
    of: dict[int, list[int]] = {}
    for number, (place, _) in enumerate(summaries):
        of.setdefault(place, []).append(number)
    places = sorted(of, key=lambda place: len(rows[of[place][0]]["input_ids"]))
    found = np.zeros(len(rows))

    def score(at_once: int) -> None:
        for start in range(0, len(places), at_once):
            several = [of[place] for place in places[start : start + at_once]]
            logits, labels = _score(model, [[rows[number] for number in numbers] for numbers in several])
            losses = cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
            )
            means = -losses.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)
            found[[number for numbers in several for number in numbers]] = means.double().cpu().numpy()

    was_training = model.network.training
    model.network.eval()
    with inference(model.network):
        fitting.with_less(score, batch_size, fitting.fewer("computing likelihoods for"))
    model.network.train(was_training)
    return found


def _score(model: Model, several: list[list[dict[str, Any]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (summaries, tokens) of some dialogues' summaries; each prompt is read once.

    But with virtual tokens, which PEFT would put before every pass: there it is read for each of its summaries.
    """
    device, rows = model.network.device, [row for group in several for row in group]
    if packs(model.network):
        prompts = model.family.collate([{"input_ids": group[0]["input_ids"]} for group in several])
        prompts = {name: value.to(device) for name, value in prompts.items()}
        labels = pad_sequence([torch.tensor(row["labels"]) for row in rows], True, IGNORED).to(device)
        owners = torch.tensor([place for place, group in enumerate(several) for _ in group], device=device)
        return model.family.continued(model.network, prompts, labels, owners), labels
    shift = model.family.label_shift
    batch = model.family.collate(rows)
    batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    labels = batch.pop("labels")[:, shift:]
    logits = model.network(**batch).logits
    return logits[:, : logits.shape[1] - shift], labels


def run_test(model: Model, test: datasets.Dataset) -> pd.DataFrame:
    """A row a pair, as records keep it: `id, kind, reference, wrong`, the last two as `log_likelihoods` gives them."""
    compared = pairs(test)
    dialogues = list(test["dialogue"])
    texts = dict.fromkeys((place, text) for place, _, *both in compared for text in both)  # each once
    scored = processes.shared(lambda some: log_likelihoods(model, dialogues, some), list(texts))
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
        row = {"run": label(run)} | ({"": "not measured"} if run.likelihood.empty else {})
        for kind, entries in run.likelihood.groupby("kind", sort=False) if len(run.likelihood) else ():
            right = (entries["reference"] > entries["wrong"]).to_numpy(dtype=float)
            low, high = interval(right)
            row[f"{kind} (n = {len(right)})"] = f"{right.mean():.0%} [{low:.0%}, {high:.0%}]"
        rows.append(row)
    return pd.DataFrame(rows).set_index("run").fillna("–")
