"""`SummarizationTrainer` in one of several processes: the steps, and the validation, are those of one process.

- Data parallel: every process holds the model (DDP), or a part of it where a device cannot hold its training (FSDP).
- The loss: Trainer counts the tokens of a step over all processes, and takes DDP's mean back. Validation summaries are
  shared out.
- Compiled steps and their graphs: DDP exchanges gradients by hooks during the backward pass, which a graph does not
  hold. Here the model stays as it is, and its gradients are averaged behind the step.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import datasets
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from . import fast, hardware, processes
from .experiments import Method
from .generation import summarize
from .models import Model
from .training import SummarizationTrainer

warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing changes it in place


class ParallelTrainer(SummarizationTrainer):
    """See the module; arguments are those of `SummarizationTrainer`, `args` for one process of several."""

    def __init__(self, model: Model, *some: Any, **arguments: Any) -> None:
        pairs, args = len(arguments.get("train_dataset") or ()), arguments["args"]
        for name, size in (("train_dataset", args.train_batch_size), ("eval_dataset", args.eval_batch_size)):
            if arguments.get(name):
                arguments[name] = filled(arguments[name], processes.count() * size)
        # PEGASUS' positions are fixed and not frozen: DDP would wait for their gradients.
        args.ddp_find_unused_parameters = fast.base_of(model.network).config.model_type == "pegasus"
        super().__init__(model, *some, **arguments)
        self.pairs = pairs
        if self.is_fsdp_enabled:
            self.fast = False
            # Tied embeddings as one module: accelerate shards the first of several modules alone.
            model.network.set_input_embeddings(model.network.get_input_embeddings())

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler:
        """The order of one process, dealt out."""
        lengths = list(self.train_dataset["length"])
        sampler = super()._get_train_sampler(self.train_dataset.select(range(self.pairs)))
        if isinstance(sampler, RandomSampler):  # accelerate does the same, were it not inside another
            sampler = SeedableRandomSampler(sampler.data_source, data_seed=self.args.data_seed)
        dealt = DealtOut(sampler, lengths, self.args.train_batch_size)
        self.add_callback(Epochs(dealt))
        return dealt

    def _token_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Of validation, without the factor against DDP's mean that Trainer puts on every loss with a count."""
        loss = super()._token_loss(outputs, labels, num_items_in_batch)
        undone = not self.model.training and num_items_in_batch is not None
        return loss / processes.count() if undone else loss

    def summaries(self, dialogues: list[str]) -> list[str]:
        """Each process writes its share; those that hold a part of the model write all, in step."""
        write = partial(summarize, self.parts, generation=self.generation, progress=False)
        return write(dialogues) if self.is_fsdp_enabled else processes.shared(write, dialogues)

    def train(self, *some: Any, **more: Any) -> Any:
        """Without DDP where steps are compiled; the first process's weights are everybody's, as DDP has it."""
        if self.fast:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
            for weight in self.model.parameters():
                torch.distributed.broadcast(weight.detach(), 0)
        return super().train(*some, **more)

    def training_step(self, *some: Any, **more: Any) -> torch.Tensor:
        """Gradients are averaged behind it where there is no DDP."""
        loss = super().training_step(*some, **more)
        if self.fast:
            average_gradients(self.model)
        return loss

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """The weights, put together from the processes' parts, on the first process; tied ones once."""
        if not self.is_fsdp_enabled:
            return None
        every = self.accelerator.get_state_dict(self.model)
        return {name: weight for name, weight in every.items() if name not in self.model.all_tied_weights_keys}


def trainer_class() -> type[SummarizationTrainer]:
    """The trainer for as many processes as there are."""
    return ParallelTrainer if processes.count() > 1 else SummarizationTrainer


def is_sharded(network: torch.nn.Module, method: Method) -> bool:
    """Whether weights, gradients and optimizer are divided among the processes: where no device holds them whole."""
    return processes.count() > 1 and not method.peft and not hardware.holds_training(network)


def exchange_seconds(size: int, rounds: int = 20) -> float:
    """Seconds to sum `size` bytes of fp32 numbers over the processes, by itself: the mean of some rounds."""
    numbers = torch.zeros(size // 4, device=hardware.device())
    for _ in range(3):
        torch.distributed.all_reduce(numbers)
    start = hardware.clock()
    for _ in range(rounds):
        torch.distributed.all_reduce(numbers)
    return processes.combined(max, (hardware.clock() - start) / rounds)


def average_gradients(network: torch.nn.Module) -> None:
    """The mean of the processes' gradients in place of each one's own: all in one exchange, after the backward pass.

    DDP exchanges them by hooks during the backward pass, which a graph of it does not hold.
    """
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    every = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(every)
    every /= torch.distributed.get_world_size()
    parts = every.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])


def filled(rows: datasets.Dataset, multiple: int) -> datasets.Dataset:
    """The rows, and as many behind them that learn nothing as make up a multiple, so that each process has a share.

    accelerate would take rows from the beginning, and count them twice in the loss.
    """
    count = -len(rows) % multiple
    if not count:
        return rows
    blank = {name: value[:1] if name == "input_ids" else type(value)() for name, value in rows[0].items()}
    return datasets.concatenate_datasets([rows, datasets.Dataset.from_list([blank] * count, features=rows.features)])


class Epochs(TrainerCallback):
    """Tells a sampler its epoch: accelerate does not, of several processes in an epoch that a resumed run is amid."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(int(state.epoch))


class DealtOut(Sampler):
    """Another sampler's order, in which the batches of a step, one for each process, are about as long.

    A step has the same dialogues as with one process. Those that fill the last one up (see `filled`) come last.

    Args:
        sampler: The order of the dialogues, on every process the same.
        lengths: Of all rows, those that fill up included.
        batch_size: How many a process holds at once; accelerate hands such batches out in turn.
    """

    def __init__(self, sampler: Sampler, lengths: Sequence[int], batch_size: int) -> None:
        self.sampler, self._lengths, self._step = sampler, lengths, batch_size * processes.count()

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = [*self.sampler, *range(len(self.sampler), len(self))]
        for start in range(0, len(order), self._step):
            step = sorted(order[start : start + self._step], key=self._lengths.__getitem__, reverse=True)
            for process in range(processes.count()):
                yield from step[process :: processes.count()]

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)
