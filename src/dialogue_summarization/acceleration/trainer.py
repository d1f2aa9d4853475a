"""The trainer for one GPU: packed batches, compiled layers, CUDA graphs, and micro-batches that fit into memory."""

import os
from functools import partial
from typing import Any

import datasets
import torch
import transformers
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from .. import hardware
from ..errors import ConfigurationError, NotEnoughMemory
from ..experiments import Settings
from ..models import ModelBundle, base_model
from ..training import SummarizationTrainer, largest_divisor
from .compilation import compilation_disabled, compile_model, fast_steps_available, has_virtual_tokens, supports_packing
from .cuda_graphs import StepGraphs
from .memory import BatchPlan, device_memory, dims_of, lengths_of, plan_batch
from .oom import ADVICE, retry_with_less
from .packing import attention_for, collate_packed

EXAMPLES_WORTH_COMPILING = 10_000  # compiling takes 9 to 24 s, made up for after 1,900 to 8,800 examples (H200)
_NEW, _OLD = "activation_checkpointing", "gradient_checkpointing"  # names in versions of transformers
CHECKPOINTING = _NEW if hasattr(TrainingArguments, _NEW) else _OLD


class AcceleratedTrainer(SummarizationTrainer):
    """`SummarizationTrainer` that is fast on a GPU and stays within its memory; it learns the same.

    Where memory runs out all the same it goes on with half the micro-batch and twice the accumulation, from the last
    checkpoint on: effective batch, order of examples and number of steps stay. Trainer's own `auto_find_batch_size`
    shrinks the effective batch, and begins again with the weights as the failed attempt left them.

    Beside the arguments of `SummarizationTrainer`, `compiled` says whether steps are compiled where the machine can
    (None: where the run is long enough), and `batch_plan` what the device holds at once, instead of `plan`.
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
        held = batch_plan or plan(settings, bundle, train_dataset, args, compiled)
        args.per_device_train_batch_size = args.per_device_eval_batch_size = held.micro_batch
        args.gradient_accumulation_steps = held.accumulation
        setattr(args, CHECKPOINTING, held.checkpointing)
        args.accelerator_config.non_blocking = torch.cuda.is_available()  # batches are copied while the GPU computes
        if fast_steps_available():
            args.dataloader_num_workers = min(4, os.cpu_count() or 1)
        super().__init__(bundle, settings, *more, args=args, train_dataset=train_dataset, **arguments)
        # cuDNN's attention gives gradients that are not numbers on left-padded batches (H100, torch 2.11, bf16).
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.is_fast = not held.checkpointing and steps_are_fast(settings, bundle, len(train_dataset), compiled)
        self._attention = attention_for(bundle.model)
        self._trained = [weight for weight in bundle.model.parameters() if weight.requires_grad]
        self._num_parameters = base_model(bundle.model).num_parameters(exclude_embeddings=True)
        self._graphs: StepGraphs | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """See `SummarizationTrainer`. Raises `NotEnoughMemory` where a micro-batch of one dialogue does not fit."""
        if self.is_fast:
            compile_model(self.model, self._attention)
        train, first = super().train, self.args.per_device_train_batch_size
        is_alone = self.args.world_size == 1  # where one of several ran out of memory, the others would wait for ever
        initial = [weight.detach().to("cpu", copy=True) for weight in self._trained if is_alone]

        def attempt(micro_batch: int) -> Any:
            self._graphs, checkpoint = None, resume_from_checkpoint
            if micro_batch < first:  # leave nothing of the attempt that failed
                checkpoint = get_last_checkpoint(self.args.output_dir) or checkpoint
                self.optimizer, self.lr_scheduler, self.model_wrapped = None, None, self.model
                self.model.zero_grad()
                if not checkpoint:
                    transformers.set_seed(self.args.seed)
                    with torch.no_grad():
                        torch._foreach_copy_(self._trained, initial)
            return train(checkpoint, **kwargs)

        try:
            return retry_with_less(attempt, first, self._smaller_micro_batch) if is_alone else attempt(first)
        finally:
            vars(self.model).pop("zero_grad", None)

    def _smaller_micro_batch(self, micro_batch: int) -> int:
        """Half, or the next smaller that keeps the effective batch."""
        args, step = self.args, self.state.global_step + 1
        if micro_batch == 1:
            raise NotEnoughMemory(f"Out of memory at step {step}: not one dialogue can be trained on. {ADVICE}")
        batch_size = micro_batch * args.gradient_accumulation_steps
        smaller = largest_divisor(batch_size, micro_batch // 2)
        args.per_device_train_batch_size = args.per_device_eval_batch_size = self._train_batch_size = smaller
        args.gradient_accumulation_steps = batch_size // smaller
        place = "the last checkpoint" if get_last_checkpoint(args.output_dir) else "where it began"
        held = f"{batch_size // smaller} x {smaller} dialogues"
        print(f"\nOut of memory at step {step}: going on from {place} with {held}.")
        return smaller

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
        loader = super().get_train_dataloader()
        self.data_collator = plain_collator
        return loader

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

    def costs(self) -> dict[str, float]:
        """See `SummarizationTrainer`; in fp16 also `skipped_steps`, whose gradients overflowed."""
        if not self.args.fp16:
            return super().costs()
        taken = next(iter(self.optimizer.state.values()))["step"]  # the optimizer counts no step that it skips
        return super().costs() | {"skipped_steps": self.state.global_step - int(taken)}

    # Trainer walks through all modules several times per step. What follows does without.

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 6 * inputs[getattr(self.model, "main_input_name", "input_ids")].numel() * self._num_parameters

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if not self.is_fsdp_enabled:
            self.model.zero_grad = optimizer.zero_grad  # until the end of `train`
        return optimizer

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        if self.is_fsdp_enabled:  # sharded weights are others
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()  # in fp16
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)


def plan(
    settings: Settings, bundle: ModelBundle, rows: datasets.Dataset, args: TrainingArguments, compiled: bool | None
) -> BatchPlan:
    """How each process holds its part of an effective batch; the arguments are those of `AcceleratedTrainer`."""
    batch_size = per_process_batch_size(settings.batch_size, args.world_size)
    if hardware.device().type != "cuda":  # as `training_arguments` has it
        micro_batch = largest_divisor(batch_size, args.per_device_train_batch_size)
        return BatchPlan(micro_batch, batch_size // micro_batch, checkpointing=False, bytes=0)
    dims = dims_of(bundle.model).sharded(args.world_size if args.fsdp else 1)
    packed = attention_for(bundle.model) is not None and steps_are_fast(settings, bundle, len(rows), compiled)
    # Transformers leaves out what stands in a cache where activations are checkpointed: a prefix would be lost.
    options = {"packed": packed, "checkpoints": not has_virtual_tokens(bundle.model)}
    return plan_batch(device_memory(), batch_size, dims, lengths_of(rows), **options)


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
