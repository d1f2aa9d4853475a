"""What Trainer is given: the order of dialogues, a progress bar, event files, checkpoints, averaged weights."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

SECONDS_BETWEEN_CHECKPOINTS = 600
TENSORBOARD = "tensorboard"


class GroupedByLength(LengthGroupedSampler):
    """Dialogues of a batch are about as long as one another, so that little is padding.

    The order depends on seed and epoch alone. Trainer's own sampler goes on from the last epoch's random state, so that
    a resumed run would see another order.
    """

    def __init__(self, seed: int, batch_size: int, lengths: Sequence[int]) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)


class Progress(TrainerCallback):
    """A bar of plain text. Trainer's own is HTML in notebooks, and prints a dictionary per log in terminals."""

    bar: tqdm | None = None

    def __init__(self, what: str = "training") -> None:
        self.what = what

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:  # of an attempt that failed
            self.bar.close()
        start, total = state.global_step, state.max_steps
        self.bar = tqdm(total=total, initial=start, desc=self.what, file=sys.stdout, mininterval=1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        shown = {name: kwargs["logs"][name] for name in ("loss", "eval_loss", "eval_rouge2") if name in kwargs["logs"]}
        if self.bar is not None and shown:  # None: evaluated before it trains
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()


def trackers() -> list[str]:
    """What a training reports to: TensorBoard's files, unless STUDY_REPORT_TO names others (`study --report-to`)."""
    return os.environ.get("STUDY_REPORT_TO", TENSORBOARD).split(",")


class EventFiles(TensorBoardCallback):
    """TensorBoard's event files, in the folder `tensorboard` beside the checkpoints, without this machine's paths."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.logging_dir = str(folder / TENSORBOARD)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Nothing: transformers' own would write all arguments first, paths among them."""


class TimedCheckpoint(TrainerCallback):
    """A checkpoint every `SECONDS_BETWEEN_CHECKPOINTS`, besides those at each epoch's end: a kill loses little."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save |= self.is_due()

    def is_due(self) -> bool:
        return time.monotonic() - self.last >= SECONDS_BETWEEN_CHECKPOINTS

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()

    on_train_begin = on_save


class EpochMean(TrainerCallback):
    """The mean of the trained weights at the ends of the last `count` epochs (Izmailov et al. 2018, arXiv 1803.05407).

    They are kept as files beside the checkpoints, so that an interrupted run ends with the same mean.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.count, self.folder = count, folder

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self.keep(_trained_weights(more["model"]), state.global_step)

    def keep(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """Write the weights at the end of an epoch, and remove those that are no longer averaged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{step}.safetensors"
        save_file(weights, file.with_suffix(".partial"))
        os.replace(file.with_suffix(".partial"), file)
        for old in self._files()[: -self.count]:
            old.unlink()

    def load_into(self, model: torch.nn.Module) -> None:
        """Give the model the mean of what was kept."""
        for number, file in enumerate(files := self._files()):
            kept = load_file(file)
            for name, weight in _trained_weights(model).items():
                part = kept[name].to(weight.device) / len(files)
                weight.copy_(part) if number == 0 else weight.add_(part)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"), key=lambda file: int(file.stem))  # steps


def _trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
