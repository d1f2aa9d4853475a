"""Does the model know better? After FacEval (Wang et al. 2022, arXiv 2210.11777): which of two summaries is likelier.

For each test dialogue a model should find the reference likelier than the same reference made wrong, and than one of
another dialogue. It needs nothing but the model, and sees what it knows beyond what it happens to generate.
"""

import re
from collections.abc import Callable, Sequence

import datasets
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

from ..hardware import autocast
from ..intervals import interval
from ..models import ModelBundle
from ..report import display_name
from ..runs import Run
from ..tokenization import IGNORE_INDEX, DecoderOnly

OTHER = "of another dialogue"
BATCH_SIZE = 4  # dialogues at once, each with up to 7 summaries


def run_test(bundle: ModelBundle, test: datasets.Dataset, batch_size: int = BATCH_SIZE) -> pd.DataFrame:
    """A row per pair of summaries, as `likelihood.csv` keeps it: `id, kind, reference, wrong`.

    The last two are mean log-likelihoods per token (nats). Of a longer summary the sum is lower whatever it says.
    """
    compared = pairs(test)
    summaries = list(dict.fromkeys((place, text) for place, _, *both in compared for text in both))  # each once
    scores = log_likelihoods(bundle, list(test["dialogue"]), summaries, batch_size)
    score_of = dict(zip(summaries, np.round(scores, 4), strict=True))
    rows = [
        (test[place]["id"], kind, score_of[place, reference], score_of[place, wrong])
        for place, kind, reference, wrong in compared
    ]
    return pd.DataFrame(rows, columns=["id", "kind", "reference", "wrong"])


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run, a column per kind of error: how often the reference is likelier; 50 % is chance.

    Read from `likelihood.csv` in the runs' folders.
    """
    rows = {}
    for run in runs:
        row, path = rows.setdefault(display_name(run), {}), run.folder / "likelihood.csv"
        if not path.exists():
            row[""] = "not measured"
            continue
        for kind, entries in pd.read_csv(path, encoding="utf-8").groupby("kind", sort=False):
            right = (entries["reference"] > entries["wrong"]).to_numpy(dtype=float)
            low, high = interval(right)
            row[f"{kind} (n = {len(right)})"] = f"{right.mean():.0%} [{low:.0%}, {high:.0%}]"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run").fillna("–")


def pairs(test: datasets.Dataset) -> list[tuple[int, str, str, str]]:
    """What is compared: the dialogue's place, the kind of error, a reference, and the wrong summary.

    The reference is the dialogue's first that the change applies to. The summary of another dialogue is the next one's.
    """
    compared, references = [], list(test["summaries"])
    for place, dialogue in enumerate(test["dialogue"]):
        for kind, corrupt in CORRUPTIONS.items():
            both = [(reference, corrupt(reference, dialogue)) for reference in references[place]]
            changed = [(place, kind, reference, wrong) for reference, wrong in both if wrong not in (None, reference)]
            compared += changed[:1]
        other = references[(place + 1) % len(references)][0]
        if other not in references[place]:
            compared.append((place, OTHER, references[place][0], other))
    return compared


@torch.no_grad()
def log_likelihoods(
    bundle: ModelBundle, dialogues: Sequence[str], summaries: Sequence[tuple[int, str]], batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """The mean log-likelihood per token of each summary behind its dialogue's prompt, its end included (nats).

    Args:
        bundle: The model that is asked.
        dialogues: What it reads.
        summaries: Each with the place of its dialogue.
        batch_size: How many dialogues are read at once, each with all its summaries.
    """
    rows = bundle.family.encode_all([dialogues[place] for place, _ in summaries], [text for _, text in summaries])
    numbers_of: dict[int, list[int]] = {}
    for number, (place, _) in enumerate(summaries):
        numbers_of.setdefault(place, []).append(number)
    groups = sorted(numbers_of.values(), key=lambda numbers: len(rows[numbers[0]]["input_ids"]))
    adapter = getattr(bundle.model, "active_peft_config", None)
    score = score_rows if adapter and adapter.is_prompt_learning else score_continuations
    likelihoods = np.zeros(len(rows))
    was_training = bundle.model.training
    bundle.model.eval()
    with autocast():
        for start in range(0, len(groups), batch_size):
            batch = groups[start : start + batch_size]
            logits, labels = score(bundle, [[rows[number] for number in numbers] for numbers in batch])
            losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none").view(labels.shape)
            means = -losses.sum(dim=1) / (labels != IGNORE_INDEX).sum(dim=1)
            likelihoods[np.concatenate(batch)] = means.double().cpu()
    bundle.model.train(was_training)
    return likelihoods


def score_rows(bundle: ModelBundle, groups: list[list[dict]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (summaries, tokens) of encoded rows, a group per dialogue, each prompt read once per summary.

    For virtual tokens, which PEFT puts before every forward pass.
    """
    shift = bundle.family.label_shift
    batch = bundle.family.collate([row for group in groups for row in group])
    batch = {name: value.to(bundle.model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    labels = batch.pop("labels")[:, shift:]
    logits = bundle.model(**batch).logits
    return logits[:, : logits.shape[1] - shift], labels


def score_continuations(bundle: ModelBundle, groups: list[list[dict]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (summaries, tokens) of encoded rows, a group per dialogue, whose prompt is read once."""
    model, family = bundle.model, bundle.family
    prompts = family.collate([{"input_ids": group[0]["input_ids"]} for group in groups])
    prompts = {name: value.to(model.device) for name, value in prompts.items()}
    owner = torch.tensor([place for place, group in enumerate(groups) for _ in group], device=model.device)
    mask = prompts["attention_mask"][owner]
    targets = [torch.tensor(row["labels"]) for group in groups for row in group]
    labels = pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX).to(model.device)
    known = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE_INDEX, family.tokenizer.pad_token_id)
    if not isinstance(family, DecoderOnly):  # the encoder's states serve every summary of a dialogue
        states = model.get_encoder()(**prompts).last_hidden_state[owner]
        decoder_input_ids = pad(known, (1, 0), value=family.decoder_start_token_id)
        output = model(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=decoder_input_ids, use_cache=False
        )
        return output.logits, labels
    # Summaries continue from the keys and values of the prompt, whose last token predicts the first of the summary.
    prompt = model(**prompts, use_cache=True, logits_to_keep=1)
    prompt.past_key_values.batch_select_indices(owner)
    output = model(
        input_ids=known,
        attention_mask=torch.cat([mask, (labels[:, :-1] != IGNORE_INDEX).to(mask.dtype)], dim=1),
        position_ids=mask.sum(dim=1, keepdim=True) + torch.arange(known.shape[1], device=model.device),
        past_key_values=prompt.past_key_values,
    )
    return torch.cat([prompt.logits[owner], output.logits], dim=1), labels


def swap_speakers(summary: str, dialogue: str) -> str | None:
    """Two speakers change places: the first two that the summary names, or the one it names and another."""
    speakers = dict.fromkeys(re.findall(r"^([^:\n]{1,30}):", dialogue, re.MULTILINE))
    patterns = {name: rf"(?<!\w){re.escape(name)}(?!\w)" for name in speakers}
    matches = {name: re.search(patterns[name], summary) for name in speakers}
    if len(speakers) < 2 or not any(matches.values()):
        return None
    places = {name: match.start() if match else len(summary) for name, match in matches.items()}
    one, other = sorted(speakers, key=places.get)[:2]
    swapped = {one: other, other: one}
    return re.sub(f"{patterns[one]}|{patterns[other]}", lambda match: swapped[match[0]], summary)


# In order, without one and two, which are mostly no numbers of the dialogue: "one of them", "two people discuss".
NUMBERS = (
    "three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)


def change_number(summary: str, dialogue: str) -> str | None:
    """The first number becomes the next one: 9 is 10, eleven is twelve."""

    def following(match: re.Match) -> str:
        number = match[0]
        if number.isdigit():
            return str(int(number) + 1).zfill(len(number))
        words = NUMBERS.split("|")
        place = words.index(number.lower())
        word = words[place + 1] if place + 1 < len(words) else words[place - 1]
        return word.capitalize() if number[0].isupper() else word

    return _changed(summary, rf"(?<![\w#])(\d+|{NUMBERS})(?![\w#])", following, re.IGNORECASE)


def toggle_negation(summary: str, dialogue: str) -> str | None:
    """The first negation goes; where there is none, the first verb that is easily found gets one."""
    changes = (_changed(summary, pattern, replacement) for pattern, replacement in NEGATIONS)
    return next((changed for changed in changes if changed), None)


def _changed(summary: str, pattern: str, replacement: str | Callable[[re.Match], str], flags: int = 0) -> str | None:
    """The summary with the first match replaced; None where there is none."""
    changed, count = re.subn(pattern, replacement, summary, count=1, flags=flags)
    return changed if count else None


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
# Small plain changes that make a reference wrong about its dialogue: from both, the changed reference, or None where
# there is nothing to change.
CORRUPTIONS = {
    "speakers swapped": swap_speakers,
    "number changed": change_number,
    "negation toggled": toggle_negation,
}
