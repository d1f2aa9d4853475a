"""Load, check and describe dialogues: three splits, a row per dialogue, with all its reference summaries.

A source is a Hub data set, a folder with `train`, `validation` and `test` as `.csv`, `.tsv` or `.jsonl`, or the
packaged sample. Columns: `id`, `dialogue`, `summary` (in JSON perhaps a list), and `topic` if there is one. Rows with
the same dialogue are one dialogue with several references, as in DialogSum's test split (Chen et al. 2021).
"""

import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import pandas as pd

from .errors import DataError
from .experiments import SAMPLE_DATA, Experiment
from .files import SUFFIXES, read_rows, refuse_written_list
from .hub import fetch
from .texts import unified, words

SPLITS = ("train", "validation", "test")
ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = ROOT / "outputs"


def load(experiment: Experiment) -> datasets.DatasetDict:
    """The splits of an experiment, checked, with columns `id`, `dialogue`, `summaries` (a list) and `topic`.

    `row_ids` and `row_numbers` hold the id and the number, from 1, of the row in the source that each summary is from.
    Raises `DataError` where a file, split or column is missing, or a row cannot be used.
    """
    splits = load_source(experiment.dataset)
    for split, limit in experiment.dialogues.items():
        splits[split] = splits[split].take(min(limit, len(splits[split])))
    return splits


def load_source(source: str) -> datasets.DatasetDict:
    """All dialogues of a source: the packaged sample, a folder, or a Hub data set. Raises `DataError`."""
    folder = ROOT / "data" if source == SAMPLE_DATA else Path(source).expanduser()
    if folder.is_dir():
        files = {split: _split_file(folder, split) for split in SPLITS}
        return datasets.DatasetDict({split: group_references(read_rows(file), file) for split, file in files.items()})
    if source == SAMPLE_DATA or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise DataError(f"There is no folder {source!r}: give one with train, validation and test, or a Hub id.")
    raw = fetch(datasets.load_dataset, source, "dataset", DataError)
    if missing := [split for split in SPLITS if split not in raw]:
        raise DataError(f"{source}: there is no split {missing[0]!r}, only {', '.join(raw)}.")
    return datasets.DatasetDict(
        {split: group_references(list(raw[split]), f"{source}, {split}", leave_out_empty=True) for split in SPLITS}
    )


def _split_file(folder: Path, split: str) -> Path:
    files = [path for path in folder.iterdir() if path.name.lower() in {f"{split}{suffix}" for suffix in SUFFIXES}]
    if len(files) != 1:
        there = f"both {' and '.join(sorted(path.name for path in files))} are" if files else "neither is"
        raise DataError(f"{folder} must hold {split}.csv, .tsv or .jsonl; {there} there.")
    return files[0]


def group_references(
    rows: list[dict[str, object]], where: str | Path, *, leave_out_empty: bool = False
) -> datasets.Dataset:
    """Check a source's rows, and make one of those with the same dialogue; columns as `load` has them.

    `where` names their file. `leave_out_empty` leaves out rows without a dialogue or a summary, and counts them in
    `info.description`. Raises `DataError` where a column is missing, a value cannot be used, or an id is there twice.
    """
    first_row: dict[str, int] = {}  # by id
    grouped: dict[str, dict] = {}  # by dialogue
    left_out = 0
    for number, row in enumerate(rows, 1):
        if leave_out_empty and any(_is_empty(row[column]) for column in ("dialogue", "summary") if column in row):
            left_out += 1
            continue
        place = f"{where}, row {number}"
        for column in ("id", "dialogue", "summary"):
            if row.get(column) is None:
                present = ", ".join(str(name) for name in row if row[name] is not None)
                raise DataError(f"{place}: column {column!r} is missing. The row has: {present}.")
        identifier = str(row["id"]) if type(row["id"]) is int else checked(row["id"], f"{place}, column 'id'")
        if identifier in first_row:
            raise DataError(f"{place}: id {identifier!r} already stands in row {first_row[identifier]}.")
        first_row[identifier] = number
        dialogue = checked(row["dialogue"], f"{place}, column 'dialogue'")
        summaries = row["summary"] if isinstance(row["summary"], list) else [row["summary"]]
        if not summaries:
            raise DataError(f"{place}, column 'summary': the list is empty.")
        summaries = [checked(summary, f"{place}, column 'summary'") for summary in summaries]
        topic = "" if _is_empty(row.get("topic")) else checked(str(row["topic"]), f"{place}, column 'topic'")
        entry = grouped.setdefault(dialogue, {"summaries": [], "topic": topic, "row_ids": [], "row_numbers": []})
        entry["summaries"] += summaries
        entry["row_ids"] += [identifier] * len(summaries)
        entry["row_numbers"] += [number] * len(summaries)
    if not grouped:
        raise DataError(f"{where}: no rows.")
    names = _dialogue_ids([list(dict.fromkeys(entry["row_ids"])) for entry in grouped.values()])
    rows = [{"id": name, "dialogue": text} | grouped[text] for name, text in zip(names, grouped, strict=True)]
    table = datasets.Dataset.from_list(rows)
    if left_out:
        table.info.description = f"rows without a dialogue or a summary, left out: {left_out} of {number}"
        print(f"{where}: {table.info.description}.", file=sys.stderr)
    return table


def _is_empty(value: object) -> bool:  # ROUGE has nothing to count in a text without letters and digits
    texts = value if isinstance(value, list) else [value]
    return not any(re.search(r"[^\W_]", str(text)) for text in texts if text is not None)


def checked(value: object, place: str) -> str:
    """A text from a source, `unified`. Raises `DataError` where it is empty, damaged or no text."""
    if not isinstance(value, str):
        raise DataError(f"{place}: text expected, not {type(value).__name__}.")
    refuse_written_list(value, place)
    if _is_empty(value):
        raise DataError(f"{place}: empty, or no letter or digit in it. Fill it in or leave the row out.")
    if re.search("[\ufffd\x00\ud800-\udfff]", value):  # the last are surrogates, which JSON can spell
        raise DataError(f"{place}: damaged characters. Save the file as UTF-8.")
    return unified(value).strip()


def _dialogue_ids(row_ids: list[list[str]]) -> list[str]:
    """One id per dialogue: `test_7` for rows `test_7_1`, `test_7_2`, ...; the first rows' where two are the same."""
    stems = [ids[0].rpartition("_")[0] if len(ids) > 1 else ids[0] for ids in row_ids]
    is_unique = all(stems) and len(set(stems)) == len(stems)
    return stems if is_unique else [ids[0] for ids in row_ids]


def fingerprint(splits: Mapping[str, datasets.Dataset]) -> str:
    """A hash of all ids, dialogues and references of splits: sources with the same content have the same one."""
    digest = hashlib.sha256()
    for split in (name for name in SPLITS if name in splits):
        for row in zip(*(list(splits[split][column]) for column in ("id", "dialogue", "summaries")), strict=True):
            digest.update(json.dumps([split, *row]).encode())
    return digest.hexdigest()[:16]


def normalize(text: str) -> str:
    """Lower case, without punctuation, single spaces: texts equal after this count as the same."""
    return " ".join(words(text, "_"))


def near_duplicates(splits: Mapping[str, datasets.Dataset]) -> pd.DataFrame:
    """Dialogues that repeat within a split or in another, after `normalize`.

    `shares 80 %` and `shares 50 %` count those with that part of their 8-grams in one dialogue of the other split.
    """
    texts = {split: list(map(normalize, rows["dialogue"])) for split, rows in splits.items()}
    table = [{"split": name, "compared with": name, "repeats": len(own) - len(set(own))} for name, own in texts.items()]
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        known = set(texts[other])
        row = {"split": split, "compared with": other, "repeats": sum(text in known for text in texts[split])}
        overlaps = ngram_overlap(texts[split], texts[other])
        row |= {f"shares {percent} %": sum(part >= percent / 100 for part in overlaps) for percent in (80, 50)}
        table.append(row)
    return pd.DataFrame(table).astype({"shares 80 %": "Int64", "shares 50 %": "Int64"})


def drop_near_duplicates(validation: datasets.Dataset, train: datasets.Dataset, most: float = 0.5) -> datasets.Dataset:
    """The validation dialogues to choose checkpoints and settings by: with under `most` of their 8-grams in train.

    Near-duplicates (103 of 500 in DialogSum) would reward memorizing. Where none is left, all are kept.
    """
    overlaps = ngram_overlap(validation["dialogue"], train["dialogue"])
    return validation.select([n for n, overlap in enumerate(overlaps) if overlap < most] or range(len(validation)))


def ngram_overlap(dialogues: Iterable[str], others: Iterable[str], n: int = 8) -> list[float]:
    """For each dialogue the largest fraction, 0 to 1, of its n-grams of normalized words that one of `others` has."""
    ngrams = [_ngrams(dialogue, n) for dialogue in dialogues]
    dialogues_with = defaultdict(list)
    for number, own in enumerate(ngrams):
        for ngram in own:
            dialogues_with[ngram].append(number)
    most = [0] * len(ngrams)
    for other in others:
        common = dialogues_with.keys() & _ngrams(other, n)
        for number, count in Counter(number for ngram in common for number in dialogues_with[ngram]).items():
            most[number] = max(most[number], count)
    return [count / max(len(own), 1) for count, own in zip(most, ngrams, strict=True)]


def _ngrams(text: str, n: int) -> set[str]:
    words = normalize(text).split()
    return {" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1))}  # a short text whole
