"""Does the model know better? After FacEval (Wang et al. 2022, arXiv 2210.11777): which of two summaries is likelier.

For each test dialogue a model should find the reference likelier than the same reference made wrong, and than one of
another dialogue. It needs nothing but the model, and sees what it knows beyond what it happens to generate.
"""

import re
from collections.abc import Sequence
from functools import cache, partial

import pandas as pd
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from ..hardware import autocast
from ..intervals import interval
from ..models import ModelBundle
from ..report import display_name, with_interval
from ..runs import Run

OTHER = "of another dialogue"
# In order, without one and two, which are mostly no numbers of the dialogue: "one of them", "two people discuss".
NUMBERS = (
    "three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)


def run_test(bundle: ModelBundle, test: Dataset) -> pd.DataFrame:
    """A row per pair of summaries, as `likelihood.csv` keeps it: `id, kind`, and the `log_likelihood` of both texts."""
    found = pairs(test)
    score = cache(partial(log_likelihood, bundle))  # a reference is in several pairs
    for name in ("reference", "wrong"):
        found[name] = [round(score(*both), 4) for both in zip(found["dialogue"], found[name], strict=True)]
    return found.drop(columns="dialogue")


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run, a column per kind of error: how often its `likelihood.csv` has the reference likelier."""
    rows = {}
    for run in runs:
        found = pd.read_csv(run.folder / "likelihood.csv", encoding="utf-8")
        is_right = found["reference"] > found["wrong"]
        row = rows.setdefault(display_name(run), {})
        for kind, right in is_right.groupby(found["kind"], sort=False):
            row[f"{kind} (n = {len(right)})"] = with_interval(right.mean(), interval(right), ".0%")
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run").fillna("–")


def pairs(test: Dataset) -> pd.DataFrame:
    """A row per pair of summaries to compare: `id, dialogue, kind, reference, wrong`.

    The reference is the dialogue's first that the change applies to. The summary of another dialogue is the next one's.
    """
    rows, references = [], list(test["summaries"])
    for place, (name, dialogue) in enumerate(zip(test["id"], test["dialogue"], strict=True)):
        for kind, corrupt in CORRUPTIONS.items():
            both = [(reference, corrupt(reference, dialogue)) for reference in references[place]]
            rows += [(name, dialogue, kind, *texts) for texts in both if texts[0] != texts[1]][:1]
        other = references[(place + 1) % len(references)][0]
        if other not in references[place]:
            rows.append((name, dialogue, OTHER, references[place][0], other))
    return pd.DataFrame(rows, columns=["id", "dialogue", "kind", "reference", "wrong"])


@torch.no_grad()
def log_likelihood(bundle: ModelBundle, dialogue: str, summary: str) -> float:
    """The mean log-likelihood per token (nats) of a summary and its end; a longer one would have a lower sum."""
    batch = bundle.family.collate([bundle.family.encode(dialogue, summary)])
    batch = {name: value.to(bundle.model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    labels = batch.pop("labels")[0, bundle.family.label_shift :]
    with autocast(bundle.model):
        logits = bundle.model(**batch).logits[0, : len(labels)]
    return -cross_entropy(logits.float(), labels).item()


def swap_speakers(summary: str, dialogue: str) -> str:
    """Two speakers change places: the first two that the summary names, or the one it names and another."""
    speakers = dict.fromkeys(re.findall(r"^([^:\n]{1,30}):", dialogue, re.MULTILINE))
    if len(speakers) < 2:
        return summary
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in speakers)
    one, other, *_ = dict.fromkeys([*re.findall(pattern, summary), *speakers])
    swapped = {one: other, other: one}
    return re.sub(pattern, lambda match: swapped.get(match[0], match[0]), summary)


def change_number(summary: str, dialogue: str) -> str:
    """The first number becomes the next one: 9 is 10, eleven is twelve."""
    return re.sub(rf"(?<![\w#])(\d+|{NUMBERS})(?![\w#])", _next_number, summary, count=1, flags=re.IGNORECASE)


def _next_number(match: re.Match) -> str:
    number, words = match[0], NUMBERS.split("|")
    if number.isdigit():
        return str(int(number) + 1).zfill(len(number))
    following = [*words[1:], "eighty"][words.index(number.lower())]
    return following.capitalize() if number[0].isupper() else following


def _infinitive(verb: str) -> str:
    verb = re.sub(r"(?<=\w\w)ies$", "y", verb)
    return "have" if verb == "has" else re.sub(r"(?<=[cs]h|ss|zz)es$|(?<=[ox])es$|s$", "", verb)


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


# Small plain changes that make a reference wrong about its dialogue, or leave it where there is nothing to change.
CORRUPTIONS = {"speakers swapped": swap_speakers, "number changed": change_number, "negation toggled": toggle_negation}
