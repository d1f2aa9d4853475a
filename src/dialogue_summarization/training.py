"""Training through the Hugging Face Trainer: its arguments, and the one subclass that both families share."""

import contextlib
import math
import os
import pickle
import time
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from peft.optimizers import create_loraplus_optimizer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
)
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy
from transformers.utils.notebook import NotebookProgressCallback

from . import damage, fast, fitting, hardware, processes
from .energy import Energy
from .experiments import Generation, Method, Settings
from .generation import summarize
from .halving import HalvingTrainer
from .memory import Plan
from .models import Model, has_virtual_tokens, packs
from .packaged import ModelError
from .rouge import means
from .tokenization import IGNORED, Family
from .trainer_parts import EpochMean, EventFiles, GroupedByLength, Progress

# What TrainingArguments calls gradient checkpointing: its name changed between transformers 5.17 and 5.23.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
TENSORBOARD = "tensorboard"  # the folder of event files beside the checkpoints
PAIRS_WORTH_COMPILING = 10_000  # compiling takes 9 to 24 s, made up for after 1,900 to 8,800 (H200)


class TrainingDiverged(ArithmeticError):
    """The loss stopped being a number; the message names the step and says what to do."""


def encode(rows: datasets.Dataset, family: Family) -> datasets.Dataset:
    """A split as Trainer takes it, a row a pair of dialogue and reference: `input_ids`, `labels`, `length`."""
    several = list(rows["summaries"])
    dialogues = [dialogue for dialogue, texts in zip(rows["dialogue"], several, strict=True) for _ in texts]
    summaries = [summary for texts in several for summary in texts]
    return datasets.Dataset.from_list(family.encode_all(dialogues, summaries))


def are_fast(settings: Settings, model: Model, pairs: int, compiled: bool | None = None) -> bool:
    """Whether steps are compiled: where the machine can, and a run over so many pairs is worth it, or `compiled` asks.

    Runs one after the other that differ in their settings alone are compiled once: short ones are worth it too.
    """
    wanted = pairs * settings.epochs >= PAIRS_WORTH_COMPILING if compiled is None else compiled
    return wanted and hardware.fast_steps() and packs(model.network)


def planned(
    settings: Settings, model: Model, rows: datasets.Dataset, *, sharded: bool = False, compiled: bool | None = None
) -> Plan:
    """How a step's dialogues are held by each device that trains; the arguments are those of `training_arguments`."""
    own = processes.share(settings.batch_size, processes.count())
    packed = model.family.fixed_attention is not None and are_fast(settings, model, len(rows), compiled)
    checkpoints = not has_virtual_tokens(model.network)
    return fitting.fits(own, model.network, rows, packed, checkpoints, processes.count() if sharded else 1)


def training_arguments(
    settings: Settings,
    folder: str | Path,
    model: Model,
    rows: datasets.Dataset,
    *,
    seed: int = 0,
    sharded: bool = False,
    compiled: bool | None = None,
) -> TrainingArguments:
    """Hugging Face's arguments for a method's settings on this machine; checkpoints go to `folder`.

    What the machine decides (precision, how many dialogues a device holds at once, whether it computes activations
    twice to hold them, how many devices there are) leaves the effective batch.

    Args:
        settings: The method's settings.
        folder: Where checkpoints go.
        model: The model to train, its adapter included.
        rows: The encoded training pairs.
        seed: Of dropout and the order of pairs.
        sharded: Whether weights, gradients and optimizer are divided among the processes (FSDP).
        compiled: Whether steps are compiled where they can be; None: where the run is long enough.
    """
    best_by = "loss" if settings.averaged_epochs else settings.select_by  # summaries are scored at the end alone then
    plan = planned(settings, model, rows, sharded=sharded, compiled=compiled)
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        per_device_eval_batch_size=plan.evaluation_batch,
        **{CHECKPOINTING: plan.checkpointing},
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # below 1: a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        use_cpu=hardware.device().type == "cpu",
        bf16=hardware.precision() == "bf16",
        eval_strategy="epoch",
        save_strategy="epoch" if settings.epochs > 1 else "no",  # of one epoch there is nothing to choose
        save_total_limit=1,  # the best checkpoint and the last
        load_best_model_at_end=settings.epochs > 1 and not settings.averaged_epochs,
        metric_for_best_model=best_by,
        greater_is_better=best_by != "loss",
        prediction_loss_only=True,  # Trainer would keep the logits of every word otherwise
        logging_steps=0.01,  # below 1: a share of all steps
        logging_nan_inf_filter=False,  # it waits for the GPU at every step; SummarizationTrainer looks when it logs
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=min(4, os.cpu_count() or 1) if hardware.fast_steps() else 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={
            "non_blocking": torch.cuda.is_available(),  # batches are copied while the card computes
            # Otherwise each process would hold the gradients of all weights until the last micro-batch.
            "gradient_accumulation_kwargs": {"sync_each_batch": sharded},
        },
        disable_tqdm=True,  # our own bar, plain text
        report_to="none",  # TensorBoard's files are SummarizationTrainer's
        seed=seed,
        data_seed=seed,
        fsdp=sharded or None,
        fsdp_config={"version": 2, "state_dict_type": "SHARDED_STATE_DICT"} if sharded else None,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # on a machine with two, Trainer would silently use DataParallel
    return arguments


def train_alone(arguments: TrainingArguments) -> None:
    """Let a training neither validate nor save on its way, where it is only measured."""
    arguments.eval_strategy = arguments.save_strategy = IntervalStrategy.NO
    arguments.load_best_model_at_end = False


class SummarizationTrainer(HalvingTrainer):
    """Trainer with what it lacks for summaries.

    - A loss over summary tokens that is exact under gradient accumulation for both families: T5's own ignores
      `num_items_in_batch`, while Trainer then leaves out its division: 4 x 8 dialogues would step 4 times as far as 32.
    - ROUGE of generated summaries of the validation dialogues in `evaluate`, for decoder-only models too
      (`Seq2SeqTrainer` generates for encoder-decoder models alone), where `select_by` asks for it.
    - The mean of the last epochs' weights at the end, where `averaged_epochs` asks for it.
    - A stop with the step's number when the loss is not finite, seconds of pure training in the log, a plain progress
      bar, and a checkpoint every ten minutes, so that a kill in a long epoch loses little.
    - Where memory runs out it goes on: see `HalvingTrainer`.

    Args:
        model: The model to train, its adapter included.
        settings: The method's settings; `args` come from them by `training_arguments`.
        generation: How validation summaries are written.
        validation: The dialogues that `eval_dataset` encodes; needed where `select_by` is not "loss".
        method: The method that made the model; needed where it has a LoRA+ ratio.
        compiled: As `training_arguments` has it.
        **arguments: Trainer's own: `args`, `train_dataset`, `eval_dataset`.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        generation: Generation | None = None,
        validation: datasets.Dataset | None = None,
        method: Method | None = None,
        compiled: bool | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            model=model.network, data_collator=model.family.collate, compute_loss_func=self._token_loss, **arguments
        )
        # cuDNN's attention gave gradients that are not numbers on left-padded batches (H100, torch 2.11, bf16).
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.method = method
        self.pairs = len(self.train_dataset) if self.train_dataset is not None else 0
        self.fast = are_fast(settings, model, self.pairs, compiled) and not getattr(self.args, CHECKPOINTING)
        self._graphs: fast.StepGraphs | None = None
        self.parts, self.settings, self.generation, self.validation = model, settings, generation, validation
        self._clock: float | None = None
        self._not_training = 0.0
        self._counted: int | None = None
        self._trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        # The mean of these batch losses over dialogues, which is what Trainer reports, is then the mean over tokens.
        tokens = sum(len(labels) for labels in self.eval_dataset["labels"]) if self.eval_dataset else 0
        self._eval_tokens_a_dialogue = tokens / len(self.eval_dataset) if self.eval_dataset else 1.0
        for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
            self.remove_callback(callback)
        self.add_callback(Progress())
        if is_tensorboard_available():
            self.add_callback(EventFiles(Path(self.args.output_dir) / TENSORBOARD))
        self._mean = None
        if settings.averaged_epochs:
            self._mean = EpochMean(settings.averaged_epochs, self.args.output_dir, sharded=self.is_fsdp_enabled)
            self.add_callback(self._mean)
        if settings.patience is not None:
            self.add_callback(EarlyStoppingCallback(settings.patience))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's; for LoRA+ PEFT's, in which B learns faster than A."""
        if self.optimizer is None and self.method and self.method.loraplus_ratio:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, loraplus_lr_ratio=self.method.loraplus_ratio,
                loraplus_weight_decay=self.args.weight_decay, **arguments,
            )  # fmt: skip
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler | None:
        """Trainer's, with an order that depends on seed and epoch alone, so that a resumed run sees the same.

        Dialogues of about the same length are together, but in packed batches, which need no grouping.
        """
        rows = train_dataset if train_dataset is not None else self.train_dataset
        if self.fast and self.parts.family.fixed_attention:
            self.args.train_sampling_strategy = "random"
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return GroupedByLength(self.args.seed, step, rows["length"])

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's; batches of few shapes where steps are compiled. Evaluation keeps the plain ones."""
        plain = self.data_collator
        if self.fast:
            self.data_collator = partial(self.parts.family.fixed, batch_size=self.args.train_batch_size)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def _token_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Cross-entropy over the summary tokens of an optimizer step; on validation, of all dialogues, unsmoothed."""
        shift = self.parts.family.label_shift
        logits = outputs.logits[:, : outputs.logits.shape[1] - shift].flatten(0, 1).float()
        smoothing = self.settings.label_smoothing if self.model.training else 0.0
        total = cross_entropy(
            logits, labels[:, shift:].flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )
        if not self.model.training:
            return total / (len(labels) * self._eval_tokens_a_dialogue)
        return total / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum())

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's, and ROUGE of the validation summaries where the best checkpoint is chosen by it."""
        start = time.perf_counter()
        with fast.eager(self.model):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            if self.settings.select_by != "loss" and not (self._mean and self.is_in_train):
                texts = self.summaries(list(self.validation["dialogue"]))
                scores = means(texts, self.validation["summaries"])
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        self._not_training += time.perf_counter() - start
        return output

    def summaries(self, dialogues: list[str]) -> list[str]:
        """What the model writes so far."""
        return summarize(self.parts, dialogues, self.generation, progress=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the seconds of training so far.

        Raises:
            TrainingDiverged: The loss since the last log, or on validation, is not a finite number.
        """
        if bad := [name for name in ("loss", "eval_loss", "train_loss") if not math.isfinite(logs.get(name, 0.0))]:
            raise TrainingDiverged(
                f"The loss ({bad[0]}) is {logs[bad[0]]} at step {self.state.global_step} of {self.state.max_steps}. "
                f"Lower the learning rate ({self.settings.learning_rate:g}) or raise the warm-up "
                f"({self.settings.warmup:g}). Checkpoints so far are in {self.args.output_dir}."
            )
        super().log({**logs, "seconds": round(self.training_seconds() if self._clock else 0.0, 2)}, start_time)

    def training_seconds(self) -> float:
        """Wall time of training without evaluations, over all sittings of a run that was interrupted."""
        if self._clock is None:
            past = [entry["seconds"] for entry in self.state.log_history if "seconds" in entry]
            self._clock = time.perf_counter() - (past[-1] if past else 0.0)
            self._not_training = 0.0
        return time.perf_counter() - self._clock - self._not_training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; leaves `train_seconds`, and `peak_memory` in bytes and `joules`, None where they are not known.

        They are those of the last attempt, where memory ran out.
        """
        if self.fast:
            fast.prepare(self.model, self.parts.family.fixed_attention)
        # Sharding puts other weights in the place of the network's.
        with contextlib.nullcontext() if self.is_fsdp_enabled else fast.quick_zero_grad(self.model):
            return super().train(*args, **kwargs)

    def attempt(self, checkpoint: str | bool | None, **kwargs: Any) -> Any:
        """See `HalvingTrainer`.

        Raises:
            ModelError: The checkpoint's pickles hold more than tensors and numbers.
        """
        self._clock = self._graphs = None
        try:
            with hardware.PeakMemory() as peak, Energy() as energy:
                output = super().attempt(checkpoint, **kwargs)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{checkpoint} holds an object in place of the state of an optimizer or a scheduler. It was not read, "
                f"since that could run its code. Remove the folder, and the same command goes on."
            ) from error
        self.peak_memory = processes.combined(max, peak.bytes)
        self.joules = processes.combined(sum, None if checkpoint else energy.joules)  # not of earlier sittings
        if self._mean:
            self._mean.load_into(self.model)
            self.evaluate()
        self.train_seconds = self.training_seconds()
        return output

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, with one clear error where the disk is full."""
        with damage.writing(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer's, but for tied weights, which a checkpoint holds once: T5's embeddings have three names."""
        missing = [name for name in load_result.missing_keys if name not in self.model.all_tied_weights_keys]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Trainer's; the first starts the clock. From a CUDA graph where steps are compiled."""
        if self._clock is None:
            self.training_seconds()
        step = super().training_step
        if not self.fast or self.args.gradient_accumulation_steps > 1:  # a graph begins with no gradients
            return step(model, inputs, num_items_in_batch)
        if self._graphs is None:
            self._graphs = fast.StepGraphs(partial(step, model), model)
        return self._graphs(self._prepare_inputs(inputs), num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's, with weights counted once: it walks through all modules for it at every step."""
        if self._counted is None:
            self._counted = self.model.num_parameters(exclude_embeddings=True)
        return 6 * inputs[getattr(self.model, "main_input_name", "input_ids")].numel() * self._counted

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Trainer's, of the trained weights alone and without looking for them at every step; not where sharded."""
        if self.is_fsdp_enabled:
            return super()._clip_grad_norm(model)
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """The weights where the model in this process holds only a part of them."""
        return None
