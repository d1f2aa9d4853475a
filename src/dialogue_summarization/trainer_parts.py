"""What Trainer is given beside a model: the order of dialogues, a plain bar, event files, checkpoints, means."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
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
        if processes.count() > 1 and not control.should_log:
            return  # all must save together: they ask one another only where they wait for one another anyway
        if any(processes.gather(time.monotonic() - self.last >= SECONDS_BETWEEN_CHECKPOINTS)):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last, self.saved = time.monotonic(), True


class EpochMean(TrainerCallback):
    """The mean of the trained weights at the ends of the last `count` epochs (Izmailov et al. 2018, arXiv 1803.05407).

    They are kept as files beside the checkpoints, so that an interrupted run ends with the same mean. Of several
    processes the first writes them for all; where each holds a part of every weight (FSDP), each its own.
    """

    def __init__(self, count: int, folder: str | Path, *, sharded: bool = False) -> None:
        self.count, self._writes = count, sharded or processes.is_first()
        self.folder = Path(folder) / "epochs" / (str(processes.rank()) if sharded else "whole")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{round(state.epoch):04}.safetensors"
        save_file(_trained(kwargs["model"]), file.with_suffix(".partial"))
        os.replace(file.with_suffix(".partial"), file)
        for old in self._files()[: -self.count]:
            old.unlink()

    def load_into(self, network: torch.nn.Module) -> None:
        """Give the network the mean of what was kept."""
        files = self._files()
        for number, file in enumerate(files):
            kept = load_file(file)
            for name, weight in _trained(network).items():
                share = kept[name].to(weight.device) / len(files)
                weight.copy_(share) if number == 0 else weight.add_(share)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def _trained(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights, of each the part that this process holds."""
    weights = {name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad}
    return {name: weight.to_local() if isinstance(weight, DTensor) else weight for name, weight in weights.items()}
