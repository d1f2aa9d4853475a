"""Load, check and describe dialogues: three splits, one row a dialogue, with all its reference summaries.

A source is a Hub data set, a folder with `train`, `validation` and `test` as `.csv` or `.jsonl`, or the packaged
sample. Columns: `id`, `dialogue`, `summary` (JSON lines may hold a list of summaries), and `topic` if there is one.
Rows with the same dialogue are one dialogue with several references, as in DialogSum's test split (Chen et al. 2021).
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import pandas as pd

from . import hub
from .experiments import SAMPLE_DATA, Experiment

SPLITS = ("train", "validation", "test")
ROOT = Path(__file__).resolve().parents[2]


class DataError(ValueError):
    """Data that cannot be used; the message names the file, row and column and says what to do."""


def load(experiment: Experiment) -> datasets.DatasetDict:
    """The splits of an experiment, checked, with columns `id`, `dialogue`, `summaries` (a list) and `topic`.

    Raises:
        DataError: A file, split or column is missing, or a row cannot be used.
    """
    splits = load_source(experiment.dataset)
    for split, limit in experiment.dialogues.items():
        splits[split] = splits[split].select(range(min(limit, len(splits[split]))))
    return splits


def load_source(source: str) -> datasets.DatasetDict:
    """All dialogues of a source: the packaged sample, a folder, or a Hub data set. Raises `DataError`."""
    folder = ROOT / "data" if source == SAMPLE_DATA else Path(source).expanduser()
    if folder.is_dir():
        return datasets.DatasetDict({split: _read_split(folder, split) for split in SPLITS})
    if source == SAMPLE_DATA or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise DataError(f"There is no folder {source!r}. Give a folder with train, validation and test, or a Hub id.")
    try:
        with hub.caches_alone_if_silent() as reason:
            raw = datasets.load_dataset(source)
    except Exception as error:
        reason = reason or f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise DataError(
            f"The data set {source!r} is not in the cache and could not be loaded from the Hugging Face Hub "
            f"({reason}). Try again when it answers. Without a network, give a folder with the same files "
            f"(--dataset PATH), or run the experiment quickstart, which needs none."
        ) from error
    missing = [split for split in SPLITS if split not in raw]
    if missing:
        raise DataError(f"{source}: there is no split {missing[0]!r}, only {', '.join(raw)}.")
    return datasets.DatasetDict({split: _group(list(raw[split]), f"{source}, {split}") for split in SPLITS})


def _read_split(folder: Path, split: str) -> datasets.Dataset:
    files = [path for suffix in (".csv", ".jsonl") if (path := folder / f"{split}{suffix}").exists()]
    if len(files) != 1:
        found = "both" if files else "neither"
        raise DataError(f"{folder} must hold {split}.csv or {split}.jsonl; {found} is there.")
    return _group(read_rows(files[0]), str(files[0]))


def read_text(path: Path) -> str:
    """A file's text in UTF-8. Raises `DataError` where it cannot be read or is in another encoding."""
    try:
        return decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def decode(content: bytes, where: str) -> str:
    """Bytes in UTF-8 as text. Raises `DataError`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{where}, line {line}: not UTF-8. Save the file with the encoding UTF-8.") from None


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a CSV or JSON lines file, in UTF-8, as dictionaries.

    Raises:
        DataError: The file is missing, is not UTF-8, or has a line that is not what its ending says.
    """
    text = read_text(path)
    if path.suffix == ".csv":
        csv.field_size_limit(1 << 27)
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.reader.line_num}: not CSV ({error}).") from None
        for number, row in enumerate(rows, 1):
            if None in row:
                raise DataError(f"{path}, row {number}: more fields than the header has. Quote fields with commas.")
        return rows
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise DataError(f"{path}, line {number}: not JSON ({getattr(error, 'msg', error)}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object with id, dialogue and summary.")
        rows.append(row)
    return rows


def _group(rows: list[dict[str, object]], where: str) -> datasets.Dataset:
    """Check rows and gather those of one dialogue; `where` names the file in errors."""
    if not rows:
        raise DataError(f"{where}: no rows.")
    seen: dict[str, int] = {}
    grouped: dict[str, dict] = {}
    for number, row in enumerate(rows, 1):
        for column in ("id", "dialogue", "summary"):
            if row.get(column) is None:
                there = ", ".join(str(name) for name in row if row[name] is not None)
                raise DataError(f"{where}, row {number}: column {column!r} is missing. The row has: {there}.")
        identifier = str(row["id"]) if type(row["id"]) is int else _text(row["id"], where, number, "id")
        if identifier in seen:
            raise DataError(f"{where}, row {number}: id {identifier!r} already stands in row {seen[identifier]}.")
        seen[identifier] = number
        dialogue = _text(row["dialogue"], where, number, "dialogue")
        summaries = row["summary"] if isinstance(row["summary"], list) else [row["summary"]]
        if not summaries:
            raise DataError(f"{where}, row {number}, column 'summary': the list is empty.")
        summaries = [_text(summary, where, number, "summary") for summary in summaries]
        topic = _text(str(row["topic"]), where, number, "topic") if str(row.get("topic") or "").strip() else ""
        entry = grouped.setdefault(dialogue, {"ids": [], "summaries": [], "topic": topic})
        entry["ids"].append(identifier)
        entry["summaries"] += summaries
    names = _dialogue_ids([entry["ids"] for entry in grouped.values()])
    return datasets.Dataset.from_list(
        [
            {"id": name, "dialogue": dialogue, "summaries": entry["summaries"], "topic": entry["topic"]}
            for name, (dialogue, entry) in zip(names, grouped.items(), strict=True)
        ]
    )


def _text(value: object, where: str, number: int, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}, row {number}, column {column!r}: text expected, not {type(value).__name__}.")
    if not value.strip():
        raise DataError(f"{where}, row {number}, column {column!r}: empty. Fill it in or leave the row out.")
    if re.search("[\ufffd\x00\ud800-\udfff]", value):  # the last are halves of characters, which JSON can spell
        raise DataError(f"{where}, row {number}, column {column!r}: damaged characters. Save the file as UTF-8.")
    return value.replace("\r\n", "\n").strip()


def _dialogue_ids(groups: list[list[str]]) -> list[str]:
    """One id a dialogue: `test_7` for `test_7_1`, `test_7_2`, `test_7_3`, the first where that would not be its own."""
    stems = [{name.rpartition("_")[0] for name in ids} for ids in groups]
    owners = Counter(stem for found in stems for stem in found)
    taken = {"", *(name for ids in groups for name in ids)}
    return [
        stem if len(ids) > 1 and len(found) == 1 and owners[stem] == 1 and stem not in taken else ids[0]
        for ids, found in zip(groups, stems, strict=True)
        for stem in [next(iter(found))]
    ]


def fingerprint(splits: Mapping[str, datasets.Dataset]) -> str:
    """A hash of all ids, dialogues and references: two sources with the same content have the same one."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for row in splits[split]:
            digest.update(json.dumps([split, row["id"], row["dialogue"], row["summaries"]]).encode())
    return digest.hexdigest()[:16]


def describe(splits: Mapping[str, datasets.Dataset], family: object | None = None) -> pd.DataFrame:
    """A row a split: dialogues, references, turns, mean and longest lengths in words.

    With a `tokenization.Family` also the mean length of the encoded prompt and the share of dialogues cut to fit.
    """
    table = []
    for split, rows in splits.items():
        words = pd.Series([len(dialogue.split()) for dialogue in rows["dialogue"]])
        references = [summary for summaries in rows["summaries"] for summary in summaries]
        entry = {
            "split": split,
            "dialogues": len(rows),
            "references": len(references),
            "turns": sum(dialogue.count("\n") + 1 for dialogue in rows["dialogue"]) / len(rows),
            "words": words.mean(),
            "longest": words.max(),
            "summary words": sum(len(summary.split()) for summary in references) / len(references),
        }
        if family:
            encoded = family.encode_all(rows["dialogue"])
            entry["prompt tokens"] = sum(len(row["input_ids"]) for row in encoded) / len(rows)
            entry["truncated"] = sum(row["truncated"] for row in encoded) / len(rows)
        table.append(entry)
    return pd.DataFrame(table).set_index("split").round(3)


def fold(text: str) -> str:
    """Lower case, without punctuation, single spaces: what two texts have in common when they "are the same"."""
    return " ".join(re.findall(r"\w+", text.lower()))


def leaks(splits: Mapping[str, datasets.Dataset]) -> pd.DataFrame:
    """Dialogues that repeat within a split or stand in another, after folding case and punctuation.

    `shares 80 %` and `shares 50 %` count the dialogues that have at least that share of their 8-grams in common with
    one dialogue of the split they are compared with; a repeat shares all of them, unless it is shorter than 8 words.
    """
    folded = {split: [fold(dialogue) for dialogue in rows["dialogue"]] for split, rows in splits.items()}
    table = [
        {"split": split, "compared with": split, "repeats": len(texts) - len(set(texts))}
        for split, texts in folded.items()
    ]
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        known = set(folded[other])
        shares = overlaps(splits[split]["dialogue"], splits[other]["dialogue"])
        table.append(
            {"split": split, "compared with": other, "repeats": sum(text in known for text in folded[split])}
            | {f"shares {share} %": sum(found >= share / 100 for found in shares) for share in (80, 50)}
        )
    return pd.DataFrame(table).astype({"shares 80 %": "Int64", "shares 50 %": "Int64"})


def unseen(validation: datasets.Dataset, train: datasets.Dataset, share: float = 0.5) -> datasets.Dataset:
    """The validation dialogues that do not nearly stand in train, for choosing checkpoints and settings.

    A dialogue that shares half of its 8-grams with one of train (103 of 500 in DialogSum) would reward memorizing.
    Where none is left, all are.
    """
    shares = overlaps(validation["dialogue"], train["dialogue"])
    kept = [number for number, found in enumerate(shares) if found < share]
    return validation.select(kept or range(len(validation)))


def overlaps(dialogues: Iterable[str], others: Iterable[str], n: int = 8) -> list[float]:
    """For each dialogue the largest share, 0 to 1, of its n-grams of folded words that one of `others` has."""

    def ngrams(text: str) -> set[str]:
        words = fold(text).split()
        return {" ".join(words[start : start + n]) for start in range(len(words) - n + 1)}

    grams = [ngrams(dialogue) for dialogue in dialogues]
    owners = defaultdict(list)
    for number, own in enumerate(grams):
        for gram in own:
            owners[gram].append(number)
    most = [0] * len(grams)
    for other in others:
        shared = Counter(number for gram in owners.keys() & ngrams(other) for number in owners[gram])
        for number, count in shared.items():
            most[number] = max(most[number], count)
    return [count / max(len(own), 1) for count, own in zip(most, grams, strict=True)]
