"""Does the model know better? After FacEval (Wang et al. 2022, arXiv 2210.11777): which of two summaries is likelier.

For each test dialogue a model should find the reference likelier than the same reference made wrong, and than one of
another dialogue. It needs nothing but the model, and sees what it knows beyond what it happens to generate.
"""

import re
from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from ..hardware import autocast
from ..intervals import interval
from ..models import ModelBundle
from ..report import display_name, with_interval
from ..runs import Run
from ..tokenization import IGNORE_INDEX

OTHER = "of another dialogue"


def run_test(bundle: ModelBundle, test: datasets.Dataset) -> pd.DataFrame:
    """A row per pair of summaries, as `likelihood.csv` keeps it: `id, kind, reference, wrong`.

    The last two are mean log-likelihoods per token (nats). Of a longer summary the sum is lower whatever it says.
    """
    compared, ids, dialogues = pairs(test), list(test["id"]), list(test["dialogue"])
    summaries = list(dict.fromkeys((place, text) for place, _, *both in compared for text in both))  # each once
    scores = log_likelihoods(bundle, [dialogues[place] for place, _ in summaries], [text for _, text in summaries])
    score_of = dict(zip(summaries, scores.round(4), strict=True))
    rows = [
        (ids[place], kind, score_of[place, reference], score_of[place, wrong])
        for place, kind, reference, wrong in compared
    ]
    return pd.DataFrame(rows, columns=["id", "kind", "reference", "wrong"])


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run, a column per kind of error: how often the reference is likelier; 50 % is chance.

    Read from `likelihood.csv` in the runs' folders.
    """
    rows = {}
    for run in runs:
        found = pd.read_csv(run.folder / "likelihood.csv", encoding="utf-8")
        is_right = found["reference"] > found["wrong"]
        rows[display_name(run)] = {
            f"{kind} (n = {len(right)})": with_interval(right.mean(), interval(right), ".0%")
            for kind, right in is_right.groupby(found["kind"], sort=False)
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run").fillna("–")


def pairs(test: datasets.Dataset) -> list[tuple[int, str, str, str]]:
    """What is compared: the dialogue's place, the kind of error, a reference, and the wrong summary.

    The reference is the dialogue's first that the change applies to. The summary of another dialogue is the next one's.
    """
    compared, references = [], list(test["summaries"])
    for place, dialogue in enumerate(test["dialogue"]):
        for kind, corrupt in CORRUPTIONS.items():
            both = [(reference, corrupt(reference, dialogue)) for reference in references[place]]
            compared += [(place, kind, reference, wrong) for reference, wrong in both if wrong != reference][:1]
        other = references[(place + 1) % len(references)][0]
        if other not in references[place]:
            compared.append((place, OTHER, references[place][0], other))
    return compared


@torch.no_grad()
def log_likelihoods(
    bundle: ModelBundle, dialogues: Sequence[str], summaries: Sequence[str], batch_size: int = 16
) -> np.ndarray:
    """The mean log-likelihood per token of each summary behind its dialogue's prompt, its end included (nats)."""
    model, family = bundle.model, bundle.family
    rows = family.encode_all(dialogues, summaries)
    order = np.argsort([row["length"] for row in rows], kind="stable")
    likelihoods = np.zeros(len(rows))
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), batch_size):
        numbers = order[start : start + batch_size]
        batch = family.collate([rows[number] for number in numbers])
        batch = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        labels = batch.pop("labels")[:, family.label_shift :]
        with autocast():
            logits = model(**batch).logits[:, : labels.shape[1]]
        losses = cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")  # 0 where ignored
        likelihoods[numbers] = (-losses.sum(dim=1) / (labels != IGNORE_INDEX).sum(dim=1)).cpu()
    model.train(was_training)
    return likelihoods


def swap_speakers(summary: str, dialogue: str) -> str:
    """Two speakers change places: the first two that the summary names, or the one it names and another."""
    speakers = list(dict.fromkeys(re.findall(r"^([^:\n]{1,30}):", dialogue, re.MULTILINE)))
    if len(speakers) < 2:
        return summary
    patterns = {name: rf"(?<!\w){re.escape(name)}(?!\w)" for name in speakers}
    first = {name: re.search(f"{pattern}|$", summary).start() for name, pattern in patterns.items()}
    one, other = sorted(speakers, key=first.get)[:2]
    swapped = {one: other, other: one}
    return re.sub(f"{patterns[one]}|{patterns[other]}", lambda match: swapped[match[0]], summary)


# In order, without one and two, which are mostly no numbers of the dialogue: "one of them", "two people discuss".
NUMBERS = (
    "three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)


def change_number(summary: str, dialogue: str) -> str:
    """The first number becomes the next one: 9 is 10, eleven is twelve; ninety, the last, is eighty."""

    def following(match: re.Match) -> str:
        number, words = match[0], NUMBERS.split("|")
        if number.isdigit():
            return str(int(number) + 1).zfill(len(number))
        word = dict(zip(words, [*words[1:], "eighty"], strict=True))[number.lower()]
        return word.capitalize() if number[0].isupper() else word

    return re.sub(rf"(?<![\w#])(\d+|{NUMBERS})(?![\w#])", following, summary, count=1, flags=re.IGNORECASE)


def _infinitive(verb: str) -> str:
    """Of a third person: tries, watches, asks."""
    irregular = {"has": "have", "is": "be", "does": "do", "goes": "go"}
    if verb.endswith("ies") and len(verb) > 4:
        return f"{verb[:-3]}y"
    return irregular.get(verb) or re.sub(r"(?<=sh|ch|ss|zz)es$|(?<=x)es$|s$", "", verb)


NEGATIONS = (
    (r"\b(\w+)n't\b", lambda match: {"ca": "can", "wo": "will", "sha": "shall"}.get(match[1].lower(), match[1])),
    (r" (not|never)\b", ""),
    (r"\b(is|are|was|were|will|would|can|could|should|must|may|might)\b", r"\1 not"),
    # The third person of the present, behind a speaker or a name: "Ann asks" is "Ann doesn't ask".
    (r"(#\w+#|\b[A-Z]\w+) ([a-z]{2,}s)\b", lambda match: f"{match[1]} doesn't {_infinitive(match[2])}"),
)


def toggle_negation(summary: str, dialogue: str) -> str:
    """The first negation goes; where there is none, the first verb that is easily found gets one."""
    changes = (re.sub(pattern, replacement, summary, count=1) for pattern, replacement in NEGATIONS)
    return next((changed for changed in changes if changed != summary), summary)


# Small plain changes that make a reference wrong about its dialogue; it stays as it is where there is nothing to change.
CORRUPTIONS = {
    "speakers swapped": swap_speakers,
    "number changed": change_number,
    "negation toggled": toggle_negation,
}
