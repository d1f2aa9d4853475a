"""The trainer for one GPU: packed batches, compiled layers, CUDA graphs, and micro-batches that fit into memory."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import datasets
import torch
import transformers
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from ..callbacks import TimedCheckpoint
from ..errors import ConfigurationError, NotEnoughMemory
from ..experiments import Settings
from ..models import ModelBundle, base_model
from ..training import SummarizationTrainer, largest_divisor
from .compilation import (
    compilation_disabled,
    compile_model,
    fast_steps_available,
    has_virtual_tokens,
    supports_packing,
)
from .cuda_graphs import StepGraphs
from .memory import BatchPlan, plan_for
from .oom import ADVICE, halve, retry_with_less
from .packing import attention_for, collate_packed

EXAMPLES_WORTH_COMPILING = 10_000  # compiling takes 9 to 24 s, made up for after 1,900 to 8,800 examples (H200)
# What TrainingArguments calls gradient checkpointing: newer versions of transformers have the first name.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


class AcceleratedTrainer(SummarizationTrainer):
    """`SummarizationTrainer` that is fast on a GPU and stays within its memory; it learns the same.

    Where memory runs out all the same it goes on with half the micro-batch and twice the accumulation, from the last
    checkpoint on. The result is that of a run in which all had fitted: effective batch, order of examples and number of
    steps stay. Trainer's own `auto_find_batch_size` keeps the accumulation, so that the effective batch shrinks, and
    begins again with the weights as the failed attempt left them.

    Args:
        bundle, settings, *more, args, train_dataset, **arguments: See `SummarizationTrainer`.
        compiled: Whether steps are compiled where the machine can; None: where the run is long enough.
        batch_plan: What the device holds at once, instead of what `plan` finds.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        settings: Settings,
        *more: Any,
        args: TrainingArguments,
        train_dataset: datasets.Dataset,
        compiled: bool | None = None,
        batch_plan: BatchPlan | None = None,
        **arguments: Any,
    ) -> None:
        _hold(args, batch_plan or plan(settings, bundle, train_dataset, args, compiled))
        super().__init__(bundle, settings, *more, args=args, train_dataset=train_dataset, **arguments)
        # cuDNN's attention gives gradients that are not numbers on left-padded batches (H100, torch 2.11, bf16).
        torch.backends.cuda.enable_cudnn_sdp(False)
        is_fast = steps_are_fast(settings, bundle, len(train_dataset), compiled)
        self.is_fast = is_fast and not getattr(args, CHECKPOINTING)
        self._attention = attention_for(bundle.model)
        self._trained = [weight for weight in bundle.model.parameters() if weight.requires_grad]
        self._num_parameters = base_model(bundle.model).num_parameters(exclude_embeddings=True)
        self._graphs: StepGraphs | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """See `SummarizationTrainer`. Raises `NotEnoughMemory` where a micro-batch of one dialogue does not fit."""
        if self.is_fast:
            compile_model(self.model, self._attention)
        train, first = super().train, self.args.per_device_train_batch_size
        if self.args.world_size > 1:  # where one ran out of memory, the others would wait for ever
            with contextlib.nullcontext() if self.is_fsdp_enabled else _quick_zero_grad(self.model, self._trained):
                return train(resume_from_checkpoint, **kwargs)
        initial = [weight.detach().to("cpu", copy=True) for weight in self._trained]

        def attempt(micro_batch: int) -> Any:
            self._graphs, checkpoint = None, resume_from_checkpoint
            if micro_batch < first:
                if self._timed_checkpoint.saved:
                    checkpoint = get_last_checkpoint(self.args.output_dir)
                self._forget_attempt(None if checkpoint else initial)
            with _quick_zero_grad(self.model, self._trained):
                return train(checkpoint, **kwargs)

        return retry_with_less(attempt, first, self._smaller_micro_batch)

    @property
    def _timed_checkpoint(self) -> TimedCheckpoint:
        callbacks = self.callback_handler.callbacks
        return next(callback for callback in callbacks if isinstance(callback, TimedCheckpoint))

    def _smaller_micro_batch(self, micro_batch: int) -> int:
        """Half, or the next smaller that keeps the effective batch."""
        args, step = self.args, self.state.global_step + 1
        if micro_batch == 1:
            raise NotEnoughMemory(f"Out of memory at step {step}: not one dialogue can be trained on. {ADVICE}")
        batch_size = micro_batch * args.gradient_accumulation_steps
        smaller = largest_divisor(batch_size, micro_batch // 2)
        args.per_device_train_batch_size, args.gradient_accumulation_steps = smaller, batch_size // smaller
        self._train_batch_size = args.train_batch_size
        place = "the last checkpoint" if self._timed_checkpoint.saved else "where it began"
        held = f"{batch_size // smaller} x {smaller} dialogues"
        print(f"\nOut of memory at step {step}: going on from {place} with {held}.")
        return smaller

    def _forget_attempt(self, initial: list[torch.Tensor] | None) -> None:
        """Leave nothing of an attempt that failed; with the initial weights where there is no checkpoint."""
        self.optimizer = self.lr_scheduler = None
        self.model_wrapped = self.model
        self.model.zero_grad()
        if initial:
            transformers.set_seed(self.args.seed)
            with torch.no_grad():
                for weight, value in zip(self._trained, initial, strict=True):
                    weight.copy_(value)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's; of fewer dialogues at once where memory runs out."""
        evaluate = super().evaluate
        if self.args.world_size > 1:
            return evaluate(*args, **kwargs)

        def attempt(batch_size: int) -> dict[str, float]:
            self.args.per_device_eval_batch_size = batch_size
            return evaluate(*args, **kwargs)

        return retry_with_less(attempt, self.args.per_device_eval_batch_size, halve("evaluating"))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """See `SummarizationTrainer`; uncompiled, since shapes change all the time."""
        with compilation_disabled(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's; batches of few shapes where steps are compiled. Evaluation keeps the plain ones."""
        plain_collator = self.data_collator
        if self.is_fast:
            model_type, size = base_model(self.model).config.model_type, self.args.train_batch_size
            self.data_collator = partial(collate_packed, self.bundle.family, model_type, batch_size=size)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain_collator

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler | None:
        if not (self.is_fast and self._attention):
            return super()._get_train_sampler(train_dataset)
        # Packed batches need no grouping by length. An order by seed and epoch, as Trainer's own is by accelerate.
        rows = train_dataset if train_dataset is not None else self.train_dataset
        return SeedableRandomSampler(rows, data_seed=self.args.data_seed)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Trainer's; from a CUDA graph where steps are compiled and nothing is accumulated."""
        step = super().training_step
        if not self.is_fast or self.args.gradient_accumulation_steps > 1:
            return step(model, inputs, num_items_in_batch)
        if self._graphs is None:
            self._graphs = StepGraphs(partial(step, model), model)
        return self._graphs(self._prepare_inputs(inputs), num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's, which walks through all modules for it at every step."""
        return 6 * inputs[getattr(self.model, "main_input_name", "input_ids")].numel() * self._num_parameters

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Trainer's, without looking for the trained weights at every step; sharded ones are others."""
        if self.is_fsdp_enabled:
            return super()._clip_grad_norm(model)
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)


def plan(
    settings: Settings,
    bundle: ModelBundle,
    rows: datasets.Dataset,
    args: TrainingArguments,
    compiled: bool | None = None,
) -> BatchPlan:
    """How each process holds its part of an effective batch; the arguments are those of `AcceleratedTrainer`."""
    packed = attention_for(bundle.model) is not None and steps_are_fast(settings, bundle, len(rows), compiled)
    return plan_for(
        per_process_batch_size(settings.batch_size, args.world_size),
        bundle.model,
        rows,
        packed,
        # Transformers leaves out what stands in a cache where activations are checkpointed: a prefix would be lost.
        checkpoints=not has_virtual_tokens(bundle.model),
        world_size_sharded=args.world_size if args.fsdp else 1,
    )


def per_process_batch_size(batch_size: int, world_size: int) -> int:
    """How many dialogues of a step each process has. Raises `ConfigurationError` where they cannot be divided."""
    if batch_size % world_size:
        sizes = [str(size) for size in range(1, batch_size + 1) if batch_size % size == 0]
        raise ConfigurationError(
            f"A step of {batch_size} dialogues cannot be divided among {world_size} processes evenly. "
            f"Its batch size takes --gpus {', '.join(sizes)}."
        )
    return batch_size // world_size


def steps_are_fast(settings: Settings, bundle: ModelBundle, examples: int, compiled: bool | None = None) -> bool:
    """Whether steps are compiled: where the machine can, and the run is long enough or `compiled` asks for it.

    Runs of one process that differ in their settings alone are compiled once: short ones are worth it too.
    """
    wanted = examples * settings.epochs >= EXAMPLES_WORTH_COMPILING if compiled is None else compiled
    return wanted and fast_steps_available() and supports_packing(bundle.model)


def _hold(args: TrainingArguments, batch_plan: BatchPlan) -> None:
    args.per_device_train_batch_size = batch_plan.micro_batch
    args.gradient_accumulation_steps = batch_plan.accumulation
    args.per_device_eval_batch_size = batch_plan.evaluation_batch
    setattr(args, CHECKPOINTING, batch_plan.checkpointing)
    args.accelerator_config.non_blocking = torch.cuda.is_available()  # batches are copied while the GPU computes
    if fast_steps_available():
        args.dataloader_num_workers = min(4, os.cpu_count() or 1)


@contextlib.contextmanager
def _quick_zero_grad(model: torch.nn.Module, trained: list[torch.nn.Parameter]) -> Iterator[None]:
    """Within it the model's `zero_grad` knows the trained weights: PyTorch's looks for all at every step."""

    def zero_grad(set_to_none: bool = True) -> None:
        for weight in trained:
            weight.grad = None

    model.zero_grad = zero_grad
    try:
        yield
    finally:
        del model.zero_grad
