"""`AcceleratedTrainer` in one of several processes: the steps, and the validation, are those of one process.

Every process holds the model (DDP), or a part of it where a device cannot hold its training (FSDP). DDP exchanges
gradients by hooks during the backward pass, which a CUDA graph does not hold: with compiled steps the model stays as it
is, and its gradients are averaged after the step.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from ..acceleration.memory import device_memory, dims_of
from ..acceleration.trainer import AcceleratedTrainer
from ..callbacks import EpochMean, TimedCheckpoint
from ..experiments import Settings
from ..generation import summarize
from ..models import ModelBundle, base_model
from .processes import all_reduce, split_between_processes

_FSDP = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
    # Otherwise each process would hold the gradients of all weights until the last micro-batch.
    "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
}
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing changes it in place


class SynchronizedCheckpoint(TimedCheckpoint):
    """All processes save together: they ask one another, where they wait for one another anyway."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save |= control.should_log and any(gather_object([self.is_due()]))


class DistributedEpochMean(EpochMean):
    """The main process keeps the weights: whole ones, so that any number of processes resumes with them."""

    def keep(self, weights: dict[str, torch.Tensor], epoch: int) -> None:
        for name, part in weights.items():
            weights[name] = part.full_tensor().cpu() if isinstance(part, DTensor) else part
        if PartialState().is_main_process:
            super().keep(weights, epoch)
        PartialState().wait_for_everyone()

    def load_into(self, model: torch.nn.Module) -> None:
        with implicit_replication():  # the files hold whole weights, the model perhaps its part of them
            super().load_into(model)


class DistributedTrainer(AcceleratedTrainer):
    """See the module; arguments are those of `AcceleratedTrainer`, in each process."""

    timed_checkpoint_class, epoch_mean_class = SynchronizedCheckpoint, DistributedEpochMean

    def __init__(self, bundle: ModelBundle, settings: Settings, *more: Any, **arguments: Any) -> None:
        # PEGASUS' positions are fixed and not frozen: DDP would wait for their gradients.
        arguments["args"].ddp_find_unused_parameters = base_model(bundle.model).config.model_type == "pegasus"
        if must_shard(bundle.model):
            arguments |= {"args": replace(arguments["args"], **_FSDP), "compiled": False}
            # Tied embeddings as one module: accelerate shards the first of several modules alone.
            bundle.model.set_input_embeddings(bundle.model.get_input_embeddings())
        count = len(arguments["train_dataset"])
        for name in ("train_dataset", "eval_dataset"):
            if arguments.get(name):
                arguments[name] = fill_up(arguments[name], settings.batch_size)
        super().__init__(bundle, settings, *more, **arguments)
        self.num_train_examples = count
        self._eval_tokens_per_example *= self.args.world_size  # by which Trainer multiplies a loss, against DDP's mean

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler:
        sampler = super()._get_train_sampler(self.train_dataset.select(range(self.num_train_examples)))
        lengths, size = list(self.train_dataset["length"]), self.args.train_batch_size
        return BalancedSampler(sampler, lambda: int(self.state.epoch), lengths, size, self.args.world_size)

    def summaries(self, dialogues: list[str]) -> list[str]:
        """Each process generates its part; those that hold a part of the model generate all, in step."""
        generate = partial(summarize, self.bundle, generation=self.generation, progress=False)
        return generate(dialogues) if self.is_fsdp_enabled else split_between_processes(generate, dialogues)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Without DDP where steps are compiled; all begin with the main process's weights, as DDP has it."""
        if self.is_fast:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
            for weight in self.model.parameters():
                torch.distributed.broadcast(weight.detach(), 0)
        output = super().train(*args, **kwargs)
        self.peak_memory, self.joules = all_reduce(max, self.peak_memory), all_reduce(sum, self.joules)
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Gradients are averaged after it, all in one exchange, where there is no DDP."""
        loss = super().training_step(*args, **kwargs)
        if self.is_fast:
            gradients = [weight.grad for weight in self._trained if weight.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            parts = flat.div_(self.args.world_size).split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])
        return loss

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """All weights, gathered from the processes on the main one, tied ones once; None where each has them all."""
        if not self.is_fsdp_enabled:
            return None
        weights = self.accelerator.get_state_dict(self.model)
        return {name: weight for name, weight in weights.items() if name not in self.model.all_tied_weights_keys}


def must_shard(model: torch.nn.Module) -> bool:
    """Whether weights, gradients and optimizer states are divided among the processes: where no device holds them.

    They may take four fifths of its memory, the rest is for activations. An adapter's take little.
    """
    is_adapter = not isinstance(model, PreTrainedModel)
    return PartialState().num_processes > 1 and not is_adapter and dims_of(model).state_bytes > 0.8 * device_memory()


def fill_up(rows: datasets.Dataset, multiple: int) -> datasets.Dataset:
    """The rows, and behind them as many that learn nothing as make up a multiple.

    accelerate would take rows from the beginning, and count them twice in the loss.
    """
    count = -len(rows) % multiple
    if not count:
        return rows
    blank = {name: value[:1] if name == "input_ids" else type(value)() for name, value in rows[0].items()}
    return datasets.concatenate_datasets([rows, datasets.Dataset.from_list([blank] * count, features=rows.features)])


@dataclass(frozen=True, eq=False)
class BalancedSampler(Sampler):
    """Another sampler's order, in which the micro-batches of a step, one per process, have about as many tokens.

    A step has the same dialogues as with one process. accelerate hands out the micro-batches in turn.
    """

    sampler: Sampler
    epoch: Callable[[], int]  # accelerate sets no epoch where several processes resume within one
    lengths: Sequence[int]  # in tokens; of rows that fill up too, which come last
    micro_batch: int
    world_size: int

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        self.sampler.set_epoch(self.epoch())
        order = [*self.sampler, *range(len(self.sampler), len(self))]
        size = self.micro_batch * self.world_size
        for start in range(0, len(order), size):
            step = sorted(order[start : start + size], key=self.lengths.__getitem__, reverse=True)
            for rank in range(self.world_size):
                yield from step[rank :: self.world_size]
