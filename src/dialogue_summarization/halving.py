"""Trainer where memory runs out: half the micro-batch, twice the accumulation, from the last checkpoint on."""

from typing import Any

import torch
import transformers
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from . import fitting
from .hardware import NotEnoughMemory
from .memory import divisors
from .trainer_parts import TimedCheckpoint

Start = list[tuple[torch.nn.Parameter, torch.Tensor]]


class HalvingTrainer(Trainer):
    """Trainer that goes on where a step, or an evaluation, does not fit into memory.

    Its result is that of a run in which all had fitted: the effective batch, the order of pairs and the number of steps
    stay. With several processes, each with a card, memory that runs out is an error: the others would wait for ever.
    Trainer's own `auto_find_batch_size` leaves the accumulation as it is, so that the effective batch shrinks and
    steps and learning rates are others, and begins again with the weights as the failed attempt left them.

    It adds `TimedCheckpoint`, by which it knows whether there is a checkpoint of this training.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timed = TimedCheckpoint()
        self.add_callback(self._timed)

    def attempt(self, checkpoint: str | bool | None, **kwargs: Any) -> Any:
        """Trainer's `train`: from a checkpoint where there is one."""
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trainer's, by as many `attempt`s as it takes.

        Raises:
            NotEnoughMemory: A micro-batch of one dialogue does not fit.
        """
        if self.args.world_size > 1:
            return self.attempt(resume_from_checkpoint, **kwargs)
        first = self.args.per_device_train_batch_size
        start = [(weight, weight.detach().to("cpu", copy=True)) for weight in self.model.parameters()
                 if weight.requires_grad]  # fmt: skip

        def attempt(micro_batch: int) -> Any:
            checkpoint = resume_from_checkpoint
            if micro_batch < first:
                checkpoint = get_last_checkpoint(self.args.output_dir) if self._timed.saved else checkpoint
                self._begin_again(None if checkpoint else start)
            return self.attempt(checkpoint, **kwargs)

        return fitting.with_less(attempt, first, self._smaller)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's; of fewer dialogues at once where memory runs out.

        Raises:
            NotEnoughMemory: One dialogue does not fit.
        """
        evaluate = super().evaluate
        if self.args.world_size > 1:
            return evaluate(*args, **kwargs)

        def attempt(batch_size: int) -> dict[str, float]:
            self.args.per_device_eval_batch_size = batch_size
            return evaluate(*args, **kwargs)

        return fitting.with_less(attempt, self.args.per_device_eval_batch_size, fitting.fewer("evaluating"))

    def _smaller(self, micro_batch: int) -> int:
        """Half a micro-batch, or the next smaller that keeps the effective batch, from now on."""
        args, step = self.args, self.state.global_step + 1
        if micro_batch == 1:
            raise NotEnoughMemory(f"Out of memory at step {step}: not one dialogue can be trained on. {fitting.ADVICE}")
        batch_size = micro_batch * args.gradient_accumulation_steps
        smaller = divisors(batch_size, micro_batch // 2)[0]
        args.per_device_train_batch_size, args.gradient_accumulation_steps = smaller, batch_size // smaller
        self._train_batch_size = args.train_batch_size
        place = "the last checkpoint" if self._timed.saved else "where it began"
        print(
            f"\nOut of memory at step {step}: going on from {place} with {batch_size // smaller} x {smaller} dialogues."
        )
        return smaller

    def _begin_again(self, start: Start | None) -> None:
        """Leave nothing of an attempt that failed; with the weights of the `start` where there is no checkpoint."""
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model
        self.model.zero_grad()
        if start:
            transformers.set_seed(self.args.seed)
            with torch.no_grad():
                for weight, value in start:
                    weight.copy_(value)
