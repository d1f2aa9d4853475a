"""Short trainings that are measured: their models, and how they are trained.

FLAN-T5's shapes have random weights, which train as fast as trained ones. Their tokenizer is not packaged: SmolLM2's,
whose texts have about as many tokens, stands in, with its ids folded into T5's smaller vocabulary.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import datasets
import torch
import transformers

from dialogue_summarization import experiments, hardware, models, tokenization, training
from dialogue_summarization.acceleration.memory import CUDA_CONTEXT_BYTES
from dialogue_summarization.acceleration.trainer import AcceleratedTrainer
from dialogue_summarization.distributed.trainer import DistributedTrainer

T5_SHAPES = {  # d_model, d_ff, layers, heads: huggingface.co/google/flan-t5-{small,base,large,xl}, config.json
    "t5-small": (512, 1024, 8, 6),
    "t5-base": (768, 2048, 12, 12),
    "t5-large": (1024, 2816, 24, 16),
    "t5-xl": (2048, 5120, 24, 32),
}
TRAIN_ONLY = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "load_best_model_at_end": False}


def synchronized_time() -> float:
    """`time.perf_counter`, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def train(
    bundle: models.ModelBundle,
    settings: experiments.Settings,
    rows: datasets.Dataset,
    overrides: dict[str, object],
    **options: object,
) -> tuple[AcceleratedTrainer, dict[str, object]]:
    """Train, with compiled steps where the machine can, neither validating nor saving on the way.

    Args:
        bundle: The model.
        settings: How it is trained.
        rows: What it is trained on, encoded.
        overrides: Further arguments of `TrainingArguments`, as `max_steps`.
        options: Further arguments of `AcceleratedTrainer`.

    Returns:
        The trainer, and what was measured, for a record.
    """
    precision = {"fp16": hardware.precision_for(bundle.model) == "fp16"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = training.training_arguments(settings, folder, **(TRAIN_ONLY | precision | overrides))
        trainer_class = DistributedTrainer if arguments.world_size > 1 else AcceleratedTrainer
        trainer = trainer_class(bundle, settings, args=arguments, train_dataset=rows, **({"compiled": True} | options))
        trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    seconds, steps = trainer.train_seconds, trainer.state.global_step
    losses = [round(log["loss"], 4) for log in trainer.state.log_history if "loss" in log]
    record = {"fast": trainer.is_fast, "micro_batch": trainer.args.per_device_train_batch_size, "steps": steps}
    rate = steps * settings.batch_size / seconds
    record |= {"train_seconds": round(seconds, 1), "samples_per_second": round(rate, 1)}
    record |= {"peak_memory_bytes": trainer.peak_memory, **models.count_parameters(bundle.model)}
    loss = {"loss": losses[-1] if losses else None, "losses": losses, "steps_a_loss": arguments.logging_steps}
    return trainer, record | loss


def build(model_name: str, method_name: str) -> models.ModelBundle:
    """The packaged model ("smollm2") or one of `T5_SHAPES`, with a fresh adapter where the method has one."""
    transformers.set_seed(0)
    if model_name == "smollm2":
        bundle = models.load_model(experiments.experiment("smollm2-dialogsum"))
    else:
        folder = models.local_snapshot(experiments.PACKAGED_MODEL)
        tokenizer, _ = models.load_tokenizer(folder, experiments.experiment("quickstart"))
        with hardware.device():  # on the CPU an xl takes a minute to draw
            model = t5(model_name)
        bundle = models.ModelBundle(model, tokenizer, FoldedT5(tokenizer, 512, decoder_start_token_id=0))
    transformers.set_seed(0)
    return replace(bundle, model=models.apply_method(bundle.model, experiments.method(method_name)))


def t5(shape: str, vocabulary: int = 32_128) -> transformers.T5ForConditionalGeneration:
    """A model of a FLAN-T5 shape with random weights; its untied head is scaled, or the first loss were near 500."""
    d_model, d_ff, layers, heads = T5_SHAPES[shape]
    sizes = {"d_model": d_model, "d_kv": 64, "d_ff": d_ff, "num_layers": layers, "num_heads": heads}
    kind = {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=vocabulary, **sizes, **kind))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(vocabulary, d_model) * d_model**-0.5)
    return model


@dataclass(frozen=True)
class FoldedT5(tokenization.EncoderDecoder):
    """T5's family with another model's tokenizer: ids above the vocabulary wrap around behind the special ones."""

    vocabulary: int = 32_128
    end: int = 1

    def fold(self, token: int) -> int:
        """An id that the model has; the frequent words of a BPE, which come first, keep theirs."""
        first = max(self.tokenizer.added_tokens_decoder) + 1
        return token if token < self.vocabulary else first + (token - first) % (self.vocabulary - first)

    def encode_all(self, dialogues: list[str], summaries: list[str] | None = None) -> list[dict[str, object]]:
        rows = super().encode_all(dialogues, summaries)
        for row in rows:
            row["input_ids"] = [self.fold(token) for token in row["input_ids"]]
            if summaries:
                row["labels"] = [self.fold(token) for token in row["labels"] if token != self.end] + [self.end]
        return rows


@contextmanager
def memory_limit(gib: float | None) -> Iterator[None]:
    """Within it the process can allocate of the GPU what it could of one with so many GiB; None: all."""
    if gib and torch.cuda.is_available():
        fraction = (gib * hardware.GIB - CUDA_CONTEXT_BYTES) / hardware.describe()["memory_bytes"]
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction))
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)


def first_line(error: Exception) -> str:
    """An error's kind and first line, for a record."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
