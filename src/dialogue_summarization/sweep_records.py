"""The records of a sweep: a CSV file a group of points, a row a point, written as soon as it is done."""

from collections.abc import Mapping
from pathlib import Path

import filelock
import pandas as pd

from .runs import RecordError, write_csv

TEXTS = ("key", "method", "targets", "steps_are", "device", "commit", "date")
COLUMNS = (
    "key",  # as runs have it: a hash over all that changes the result
    "method",
    "rank",  # of LoRA, as alpha and targets
    "alpha",
    "targets",
    "learning_rate",
    "share",  # of the training dialogues
    "seed",  # of the sample of dialogues, the start and the order
    "epochs",
    "steps",
    "train_dialogues",
    "train_tokens",  # of their summaries, what there is to learn
    "validation_dialogues",
    "rouge1",  # on the validation dialogues, greedy
    "rouge2",
    "rougeL",
    "eval_loss",  # on them, unsmoothed, nats a token
    "loss",  # of training, the last that was logged
    "diverged",  # 1 where the loss stopped being a number: then nothing else was measured
    "trainable_parameters",
    "parameters",
    "train_seconds",
    "seconds",  # with loading, compiling and validation
    "peak_memory_bytes",
    "adapter_bytes",
    "steps_are",  # fast or plain
    "device",
    "commit",
    "date",
)
ALWAYS = ("key", "method", "learning_rate", "share", "seed", "diverged")
SCORES = "scores.csv"  # beside the predictions of a tested point: `id`, and a column a type of ROUGE
MEASURED = ("rouge1", "rouge2", "rougeL", "eval_loss", "loss")


def read(path: Path) -> pd.DataFrame:
    """The points of a file, none where it is not there.

    Raises:
        RecordError: It is damaged, or no file of a sweep.
    """
    if not path.exists():
        return pd.DataFrame({name: pd.Series(dtype=str if name in TEXTS else float) for name in COLUMNS})
    advice = "Move it away, and the same command makes its points again."
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8")  # numbers as text: pandas' own reading rounds them
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise RecordError(f"{path} cannot be read ({error}). {advice}") from None
    if list(table) != list(COLUMNS):
        raise RecordError(f"{path} is no file of this sweep: its columns are {', '.join(map(str, table))}. {advice}")
    numbers = [name for name in COLUMNS if name not in TEXTS]
    try:
        table = table.astype(dict.fromkeys(numbers, float))
    except ValueError as error:
        raise RecordError(f"{path} is damaged ({error}). {advice}") from None
    missing = [name for name in ALWAYS if table[name].isna().any()]
    missing += [name for name in MEASURED if table.loc[table["diverged"] == 0, name].isna().any()]
    if missing:
        raise RecordError(f"{path} is damaged: column {missing[0]!r} is not filled in. {advice}")
    if (twice := table["key"].duplicated()).any():
        raise RecordError(f"{path} is damaged: point {table['key'][twice].iloc[0]} is there twice. {advice}")
    return table


def append(path: Path, row: Mapping[str, object]) -> None:
    """Add a point: the file is whole at any time, and several processes may add to it. Raises what `read` raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        table = read(path)
        added = pd.DataFrame([row], columns=COLUMNS).astype(table.dtypes.to_dict())
        write_csv(path, added if table.empty else pd.concat([table, added], ignore_index=True))


def score(table: pd.DataFrame) -> pd.Series:
    """What the best point is chosen by: the mean of ROUGE-1, ROUGE-2 and ROUGE-L, -1 where training diverged."""
    return table[["rouge1", "rouge2", "rougeL"]].mean(axis=1).fillna(-1.0)
