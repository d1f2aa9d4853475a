"""What Trainer is given beside a model: the order of dialogues, a plain bar, event files, checkpoints by the clock."""

import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

SECONDS_BETWEEN_CHECKPOINTS = 600


class GroupedByLength(LengthGroupedSampler):
    """Dialogues of a batch are about as long: little padding. Trainer's goes on from its last epoch's random state."""

    def __init__(self, seed: int, batch_size: int, rows: datasets.Dataset) -> None:
        super().__init__(batch_size, lengths=list(rows["length"]))
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)


class Progress(TrainerCallback):
    """A bar of plain text: Trainer's own in notebooks is HTML, in terminals it prints a dictionary a log."""

    bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:  # of an attempt that failed
            self.bar.close()
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", file=sys.stdout, mininterval=1
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is None:  # evaluated before it trains
            return
        loss = {name: kwargs["logs"][name] for name in ("loss", "eval_loss", "eval_rouge2") if name in kwargs["logs"]}
        if loss:
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in loss.items()}, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()


class EventFiles(TensorBoardCallback):
    """TensorBoard's event files of all that is logged.

    Transformers' own begin with all arguments, and so with paths of this machine, and lie in a folder with its name.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.logging_dir = str(folder)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Nothing: the files are begun with the first figures."""


class TimedCheckpoint(TrainerCallback):
    """A checkpoint where the last one lies `SECONDS_BETWEEN_CHECKPOINTS` back, beside those at each epoch's end.

    `saved` says whether there is one of this training.
    """

    saved = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if time.monotonic() - self.last >= SECONDS_BETWEEN_CHECKPOINTS:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last, self.saved = time.monotonic(), True
