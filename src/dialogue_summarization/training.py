"""Training through the Hugging Face Trainer: its arguments, and the one subclass that both families share."""

import math
import os
import pickle
import time
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from . import hardware
from .callbacks import TENSORBOARD, EpochMean, EventFiles, GroupedByLength, Progress, TimedCheckpoint, trackers
from .errors import ModelError, TrainingDiverged
from .experiments import Generation, Method, Settings
from .generation import summarize
from .models import ModelBundle, count_parameters, further_methods
from .ranks import require_one_process
from .rouge import score_dialogues
from .tokenization import IGNORE_INDEX, Family


def encode_split(rows: datasets.Dataset, family: Family, references: int | None = None) -> datasets.Dataset:
    """A split as Trainer takes it: a row per pair of dialogue and reference, with `input_ids`, `labels`, `length`.

    `references` takes only the first ones of each dialogue; one is enough for a validation loss.
    """
    pairs = [(row["dialogue"], summary) for row in rows for summary in row["summaries"][:references]]
    return datasets.Dataset.from_list(family.encode_all(*zip(*pairs, strict=True)))


def training_arguments(settings: Settings, folder: str | Path, *, seed: int = 0, **overrides: Any) -> TrainingArguments:
    """Hugging Face's arguments for a method's settings on this machine; checkpoints go to `folder`.

    `seed` is of dropout and of the order of examples, `overrides` are further arguments of `TrainingArguments`.
    """
    gib = psutil.virtual_memory().total / hardware.GIB
    # A machine with 8 GB must hold it. One dialogue at a time takes 30 % longer than four (SmolLM2, full, two cores).
    micro_batch = largest_divisor(settings.batch_size, 8 if gib >= 15 else 4 if gib >= 10 else 1)
    chosen: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": settings.batch_size // micro_batch,
        "per_device_eval_batch_size": largest_divisor(settings.batch_size, 16),
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,  # below 1: a fraction of all steps
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "use_cpu": hardware.device().type == "cpu",
        "bf16": hardware.precision() == "bf16",
        "eval_strategy": "epoch",
        "eval_on_start": settings.select_by == "loss" and settings.epochs <= 1,  # the loss before, to compare with
        "save_strategy": "epoch" if settings.epochs > 1 else "no",  # of one epoch there is nothing to choose
        "save_total_limit": 1,  # the best checkpoint and the last
        "load_best_model_at_end": settings.epochs > 1 and not settings.averaged_epochs,
        # Where epochs are averaged, summaries are scored at the end alone.
        "metric_for_best_model": "loss" if settings.averaged_epochs else settings.select_by,
        "prediction_loss_only": True,  # Trainer would keep the logits of every word otherwise
        "logging_steps": 0.01,  # below 1: a fraction of all steps
        "logging_nan_inf_filter": False,  # it would wait for the GPU at every step; the trainer checks what it logs
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,  # in place of it our own bar, plain text
        "report_to": [name for name in trackers() if name not in (TENSORBOARD, "none")] or "none",
        "seed": seed,
        "data_seed": seed,
    }
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # it would count for more than `bf16` here
    arguments = TrainingArguments(**(chosen | overrides))
    arguments._n_gpu = min(arguments.n_gpu, 1)  # on a machine with two, Trainer would silently use DataParallel
    return arguments


def largest_divisor(batch_size: int, most: int) -> int:
    """The largest micro-batch, up to `most`, that keeps the effective batch."""
    return next(size for size in range(min(batch_size, most), 0, -1) if batch_size % size == 0)


def trainer_class() -> type["SummarizationTrainer"]:
    """The trainer for this machine: plain on a CPU, accelerated on a GPU, distributed in several processes.

    They learn the same. Raises `ConfigurationError` where the environment speaks of processes that are not there.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from .distributed.trainer import DistributedTrainer

        return DistributedTrainer
    require_one_process()
    if not torch.cuda.is_available():
        return SummarizationTrainer
    from .acceleration.trainer import AcceleratedTrainer

    return AcceleratedTrainer


class SummarizationTrainer(Trainer):
    """Trainer with what it lacks for summaries.

    - A loss over summary tokens that is exact under gradient accumulation for both families: T5's own ignores
      `num_items_in_batch`, while Trainer then does not divide, so that 4 x 8 dialogues would step 4 times as far as 32.
    - ROUGE of generated validation summaries in `evaluate`, for decoder-only models too (`Seq2SeqTrainer` generates for
      encoder-decoder models alone), where `select_by` asks for it.
    - The mean of the last epochs' weights at the end, where `averaged_epochs` asks for it.
    - An error with the step's number when the loss is not finite, seconds of pure training in the log, a plain progress
      bar, and a checkpoint every ten minutes.

    `arguments` are Trainer's own: `args` from `training_arguments`, `train_dataset`, `eval_dataset`. `validation`, the
    dialogues of `eval_dataset`, and `generation` are needed where `select_by` is not "loss", `method` where it has an
    optimizer of its own.
    """

    timed_checkpoint_class, epoch_mean_class = TimedCheckpoint, EpochMean  # several processes have their own

    def __init__(
        self,
        bundle: ModelBundle,
        settings: Settings,
        generation: Generation | None = None,
        validation: datasets.Dataset | None = None,
        method: Method | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            model=bundle.model, data_collator=bundle.family.collate, compute_loss_func=self._token_loss, **arguments
        )
        self.bundle, self.settings, self.method = bundle, settings, method
        self.generation, self.validation = generation, validation
        self.num_train_examples = len(self.train_dataset) if self.train_dataset is not None else 0
        self._start: float | None = None
        # Trainer's validation loss is a mean over batches, weighted by their examples. So a batch returns its summed
        # loss / (its examples x the tokens per example of the whole set): the mean is then the loss per token.
        counts = [len(labels) for labels in self.eval_dataset["labels"]] if self.eval_dataset else [1]
        self._eval_tokens_per_example = sum(counts) / len(counts)
        self.remove_callback(PrinterCallback)
        folder, count = Path(self.args.output_dir), settings.averaged_epochs
        self.epoch_mean = self.epoch_mean_class(count, folder / "epochs") if count else None
        early_stopping = EarlyStoppingCallback(settings.patience) if settings.patience is not None else None
        progress = Progress(f"training {method.name}" if method else "training")
        events = EventFiles(folder) if TENSORBOARD in trackers() else None
        ours = (progress, self.timed_checkpoint_class(), events, self.epoch_mean, early_stopping)
        for callback in filter(None, ours):
            self.add_callback(callback)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trainer's. Raises `TrainingDiverged` and `ModelError`.

        Leaves `train_seconds`, without evaluations and over all sittings, `peak_memory` in bytes, and `joules`.
        """
        self._start = None
        # Two checkpoints, with two moments per weight, stand beside what is saved in the end.
        copies = 1 + 2 * 3 * (self.args.save_strategy != "no") + self.settings.averaged_epochs
        hardware.require_room(count_parameters(self.model)["trainable_parameters"], Path(self.args.output_dir), copies)
        try:
            with hardware.Meter() as meter:
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except pickle.UnpicklingError as error:  # an object in place of a state could run its code
            raise ModelError(f"{resume_from_checkpoint} is not read: {error}. Remove the folder; run again.") from error
        self.peak_memory = meter.peak_bytes
        self.joules = None if resume_from_checkpoint else meter.joules  # earlier sittings were not measured
        if self.epoch_mean:
            self.epoch_mean.load_into(self.model)
            self.evaluate()
        self.train_seconds = self._seconds_so_far()
        return output

    def costs(self) -> dict[str, float]:
        """What the training took, as records keep it."""
        rate = self.num_train_examples * self.state.epoch / self.train_seconds
        costs = {"train_seconds": round(self.train_seconds, 2), "train_samples_per_second": round(rate, 3)}
        costs |= {"peak_memory_bytes": self.peak_memory, "train_joules": self.joules} | count_parameters(self.model)
        return {name: value for name, value in costs.items() if value is not None}

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's, or the method's own (LoRA+)."""
        if self.optimizer is None and self.method and self.method.loraplus_ratio:
            self.optimizer = further_methods().create_loraplus_optimizer(self, self.method.loraplus_ratio)
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler | None:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return GroupedByLength(self.args.seed, step, rows["length"])

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's; the first one starts the clock."""
        if self._start is None:
            self._start = time.perf_counter() - self._seconds_so_far()
        return super().training_step(*args, **kwargs)

    def _token_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Cross-entropy per summary token of an optimizer step; on validation, of all dialogues, without smoothing."""
        shift = self.bundle.family.label_shift
        logits = outputs.logits[:, : outputs.logits.shape[1] - shift].flatten(0, 1).float()
        smoothing = self.settings.label_smoothing if self.model.training else 0.0
        total = cross_entropy(
            logits, labels[:, shift:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing
        )
        if not self.model.training:
            return total / (len(labels) * self._eval_tokens_per_example)
        return total / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORE_INDEX).sum())

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's, and ROUGE of the validation summaries where the best checkpoint is chosen by it."""
        start = time.perf_counter()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.settings.select_by != "loss" and not (self.epoch_mean and self.is_in_train):
            texts = self.summaries(list(self.validation["dialogue"]))
            scores = score_dialogues(texts, self.validation["summaries"]).mean()
            output.metrics.update({f"{metric_key_prefix}_{name}": float(value) for name, value in scores.items()})
        if self._start is not None:
            self._start += time.perf_counter() - start  # it is not training
        return output

    def summaries(self, dialogues: list[str]) -> list[str]:
        """What the model generates so far."""
        return summarize(self.bundle, dialogues, self.generation, progress=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the seconds of training so far. Raises `TrainingDiverged` where a loss is not finite."""
        for name in ("loss", "eval_loss", "train_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                place = f"at step {self.state.global_step} of {self.state.max_steps}"
                rate, warmup = f"learning rate ({self.settings.learning_rate:g})", f"warm-up ({self.settings.warmup:g})"
                remedy = f"Lower the {rate} or raise the {warmup}. Checkpoints so far are in {self.args.output_dir}."
                raise TrainingDiverged(f"The loss ({name}) is {logs[name]} {place}. {remedy}")
        super().log({**logs, "seconds": round(self._seconds_so_far(), 2)}, start_time)

    def _seconds_so_far(self) -> float:
        """Of pure training, over all sittings."""
        if self._start is not None:
            return time.perf_counter() - self._start
        return next((entry["seconds"] for entry in reversed(self.state.log_history) if "seconds" in entry), 0.0)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A checkpoint holds tied weights once, of which T5's embeddings have three names.
        missing = [name for name in load_result.missing_keys if name not in self.model.all_tied_weights_keys]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))
