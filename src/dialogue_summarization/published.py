"""Systems of others on DialogSum's test split: scored by us where their predictions are, else as we scored them once.

The predictions are not part of this repository; `published_scores.csv` holds what `table` found for them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd

from .data import ROOT
from .rouge import TYPES
from .systems import System, of_file

FOLDER = ROOT.parent / "shared" / "published"
TABLE = Path(__file__).with_name("published_scores.csv")
CONVENTION = "rouge_score 0.1.2, stemming, F1, mean of 3 references"
DIALOGSUM_TEST = "1d9b7820906c345b"  # `_digest` of the test split that all of them summarized


@dataclass(frozen=True)
class Published:
    """A system as its source names it, and where its summaries are in a folder of predictions."""

    name: str
    source: str
    file: str
    column: str = "prediction"


_STUDY = "github.com/samhmariam/llm-finetune-conversation-summary-lora"
_GUIDELINES = "github.com/yongxin2020/LLM-Sum-Guidelines, arXiv 2310.16810"
SYSTEMS = (
    Published("BART-large, fine-tuned", _GUIDELINES, "bart_large_dialogsum_predictions.csv"),
    Published("FLAN-T5-base, full", _STUDY, "flan_t5_base_dialogsum_predictions.csv", "instruct_model_summaries"),
    Published("FLAN-T5-base, LoRA", _STUDY, "flan_t5_base_dialogsum_predictions.csv", "peft_model_summaries"),
    Published("FLAN-T5-base, zero-shot", _STUDY, "flan_t5_base_dialogsum_predictions.csv", "original_model_summaries"),
    Published("GPT-4o, zero-shot", _GUIDELINES, "gpt_4o_dialogsum_predictions.csv"),
    Published("GPT-4, zero-shot", _GUIDELINES, "gpt_4_dialogsum_predictions.csv"),
    Published("GPT-3.5, zero-shot", _GUIDELINES, "gpt_35_dialogsum_predictions.csv"),
)


def is_theirs(test: datasets.Dataset) -> bool:
    """Whether these are the dialogues that the published systems summarized."""
    return _digest(test) == DIALOGSUM_TEST


def _digest(test: datasets.Dataset) -> str:
    content = json.dumps([list(test["id"]), list(test["dialogue"]), list(test["summaries"])])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def load(test: datasets.Dataset, folder: str | Path | None = None) -> list[System]:
    """The published systems whose predictions are in a folder, scored on the test split; none for other dialogues.

    Raises:
        PredictionsError: A file's summaries are not of these dialogues.
    """
    folder = Path(folder) if folder else FOLDER
    if not is_theirs(test):
        return []
    return [score(entry, test, folder) for entry in SYSTEMS if (folder / entry.file).exists()]


def score(entry: Published, test: datasets.Dataset, folder: Path) -> System:
    """One published system. Raises `PredictionsError`."""
    return of_file(entry.name, folder / entry.file, entry.column, test, kind="published")[0]


def recorded() -> pd.DataFrame:
    """The committed table of scores: system, source, convention, and each measure with its interval."""
    return pd.read_csv(TABLE, encoding="utf-8").set_index("system")


def table(test: datasets.Dataset, folder: str | Path | None = None) -> pd.DataFrame:
    """The same table computed from the predictions in a folder."""
    sources = {entry.name: entry.source for entry in SYSTEMS}
    rows = []
    for one in load(test, folder):
        row = {"system": one.name, "source": sources[one.name], "convention": CONVENTION}
        for name in TYPES:
            row |= one.flat(name)
        rows.append(row)
    return pd.DataFrame(rows).set_index("system")
