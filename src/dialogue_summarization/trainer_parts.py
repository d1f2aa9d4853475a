"""What Trainer is given beside a model: the order of dialogues, a bar of plain text, checkpoints by the clock."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from . import processes

SECONDS_BETWEEN_CHECKPOINTS = 600


class GroupedByLength(LengthGroupedSampler):
    """Dialogues of a batch are about as long: little padding. Trainer's goes on from its last epoch's random state."""

    def __init__(self, seed: int, batch_size: int, lengths: Sequence[int]) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)


class Progress(TrainerCallback):
    """A bar of plain text: Trainer's own in notebooks is HTML, in terminals it prints a dictionary a log."""

    bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
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


class TimedCheckpoint(TrainerCallback):
    """A checkpoint where the last one lies `SECONDS_BETWEEN_CHECKPOINTS` back, beside those at each epoch's end."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if processes.count() > 1 and not control.should_log:
            return  # all must save together: they ask one another only where they wait for one another anyway
        if any(processes.gather(time.monotonic() - self.last >= SECONDS_BETWEEN_CHECKPOINTS)):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()
