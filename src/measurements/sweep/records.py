"""The records of a sweep: one CSV file per search space, one row per trial, written as soon as the trial is done."""

from pathlib import Path

import filelock
import pandas as pd

from dialogue_summarization.disk import write_csv
from dialogue_summarization.errors import RecordError

# `key` as runs have it, a hash over all that changes the result; `share` is the fraction of the training dialogues,
# `seed` that of their sample, the first weights and the order.
ASKED = ("key", "method", "rank", "alpha", "targets", "learning_rate", "share", "seed", "epochs")
SIZES = ("steps", "train_dialogues", "train_tokens", "validation_dialogues")  # tokens of the summaries
SCORES = ("rouge1", "rouge2", "rougeL", "eval_loss", "loss")  # on validation, greedy; unsmoothed, nats per token
# `diverged` is 1 where the loss stopped being a number: then there are no scores. `seconds` are with loading, compiling
# and validation.
COSTS = ("diverged", "trainable_parameters", "parameters", "train_seconds", "seconds", "peak_memory_bytes")
PLACE = ("adapter_bytes", "steps_are", "device", "commit", "date")  # steps are fast or plain
COLUMNS = (*ASKED, *SIZES, *SCORES, *COSTS, *PLACE)
REQUIRED = ["key", "method", "learning_rate", "share", "seed", "diverged"]
TEXTS = ("key", "method", "targets", "steps_are", "device", "commit", "date")
NUMBERS = {name: float for name in COLUMNS if name not in TEXTS}


def read(path: Path) -> pd.DataFrame:
    """The trials of a file; none where there is no file. Raises `RecordError` where it is damaged."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=str).astype(NUMBERS)
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8")  # numbers as text: pandas' own reading rounds them
        if list(table) != list(COLUMNS):
            raise ValueError(f"it is no file of this sweep, with the columns {', '.join(map(str, table))}")
        table = table.astype(NUMBERS)
        scored = table.loc[table["diverged"] == 0, list(SCORES)]
        if table[REQUIRED].isna().any(axis=None) or scored.isna().any(axis=None):
            raise ValueError("a row is not filled in")
        if table["key"].duplicated().any():
            raise ValueError("a trial is there twice")
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise RecordError(f"{path} is damaged: {error}. Moved away, it is made again by the same command.") from None
    return table


def append(path: Path, row: dict[str, object]) -> None:
    """Add a trial: the file is whole at any time, and several processes may add to it. Raises what `read` raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        write_csv(path, pd.concat([read(path), pd.DataFrame([row], columns=COLUMNS).astype(NUMBERS)]))


def score(table: pd.DataFrame) -> pd.Series:
    """What the best trial is chosen by: the mean of ROUGE-1, ROUGE-2 and ROUGE-L, -1 where training diverged."""
    return table[["rouge1", "rouge2", "rougeL"]].mean(axis=1).fillna(-1.0)
