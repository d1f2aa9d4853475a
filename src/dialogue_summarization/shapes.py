"""Whether FLAN-T5-base's shape learns here: it overfits 64 pairs, its loss falls steadily, and a checkpoint goes on.

`python -m dialogue_summarization.benchmark t5-overfit-full t5-stable`, in one process. Weights are random, so ROUGE on
memorized pairs says that training works, and nothing about summaries of other dialogues.

FLAN-T5's tokenizer is not at hand: the packaged model's, of 49,152 words, stands in, and the shape keeps its 32,128.
Token ids beyond those are folded into them (`Folded`), in what is read, what is learned, and the references that ROUGE
sees, all decoded by the same tokenizer. So a summary scores 1 where its tokens are those that were learned.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import datasets
import torch
import transformers
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from . import hardware, models
from .experiments import EXPERIMENTS, Generation, Settings
from .generation import summarize
from .rouge import means
from .small_cards import StopAfter, reason
from .tokenization import T5
from .training import SummarizationTrainer, encode, train_alone, training_arguments

Build = Callable[[str, str], models.Model]  # from a shape's and a method's name to a fresh model

PAIRS = 64
LOGGED = 10  # steps a logged loss is the mean of
STABLE = "t5-stable"


@dataclass(frozen=True)
class Overfit:
    """Training on the first `PAIRS` pairs until a number of steps or seconds, whichever comes first.

    The rate is constant after its warm-up, so that the clock may end training anywhere.
    """

    method: str
    learning_rate: float
    seconds: float
    steps: int = 1500
    batch_size: int = 16

    @property
    def settings(self) -> Settings:
        """Nothing that keeps a model from memorizing: no weight decay, no smoothing; see `without_dropout` too."""
        return Settings(
            self.learning_rate, batch_size=self.batch_size, warmup=0.03, schedule="constant_with_warmup",
            weight_decay=0.0, select_by="loss",
        )  # fmt: skip


ENTRIES = {
    "t5-overfit-full": Overfit("full", 3e-4, 200),
    "t5-overfit-lora-efficient": Overfit("lora-efficient", 1e-2, 90),
    "t5-overfit-lora-balanced": Overfit("lora-balanced", 1e-2, 90),
    "t5-overfit-lora-high-performance": Overfit("lora-high-performance", 1e-2, 90),
}
NAMES = (*ENTRIES, STABLE)


@dataclass(frozen=True, kw_only=True)
class Folded(T5):
    """T5's family with another model's tokenizer, its ids folded into a smaller vocabulary.

    Args:
        size: The network's vocabulary. Ids below it, the frequent words of a BPE, stay; others wrap around behind the
            tokenizer's special ones.
        end: The network's end token, which closes each summary.
    """

    size: int
    end: int

    @cached_property
    def first(self) -> int:
        """The first id that is no special token's."""
        return max(self.tokenizer.added_tokens_decoder) + 1

    def fold(self, token: int) -> int:
        """An id that the network has."""
        return token if token < self.size else self.first + (token - self.first) % (self.size - self.first)

    def encode_all(self, dialogues: list[str], summaries: list[str] | None = None) -> list[dict[str, Any]]:
        """See `Family`."""
        rows = super().encode_all(dialogues, summaries)
        for row in rows:
            row["input_ids"] = [self.fold(token) for token in row["input_ids"]]
            if summaries:
                row["labels"] = [*(self.fold(token) for token in row["labels"] if token >= self.first), self.end]
        return rows


def folded(model: models.Model) -> models.Model:
    """The model with `Folded` as its family."""
    own = {field.name: getattr(model.family, field.name) for field in fields(T5)}
    end = model.network.generation_config.eos_token_id
    return replace(model, family=Folded(**own, size=model.network.config.vocab_size, end=end))


def without_dropout(network: torch.nn.Module) -> None:
    """Set every rate of dropout to 0, the adapter's too; attention keeps its own as a plain number."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def measure(name: str, splits: datasets.DatasetDict, build: Build) -> dict[str, Any]:
    """What an entry of `NAMES` finds, up to where it failed, if it did: then `failed` says why."""
    found: dict[str, Any] = {"name": name, "model": "t5-base"}
    try:
        for part in stable(splits, build) if name == STABLE else overfit(ENTRIES[name], splits, build):
            found |= part
    except Exception as error:  # of any kind: the other entries are measured all the same
        found["failed"] = reason(error)
    clear_device_cache(garbage_collection=True)
    return found


def overfit(entry: Overfit, splits: datasets.DatasetDict, build: Build) -> Iterator[dict[str, Any]]:
    """Train on the first pairs, write their summaries greedily, and score those."""
    yield {"method": entry.method, "pairs": PAIRS, "batch_size": entry.batch_size, "settings": asdict(entry.settings)}
    yield {"most_steps": entry.steps, "most_seconds": entry.seconds}
    model = build("t5-base", entry.method)
    without_dropout(model.network)
    some = splits["train"].select(range(PAIRS)).map(lambda row: {"summaries": row["summaries"][:1]})
    rows = encode(some, model.family)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, entry.settings, rows, folder, entry.steps)
        trainer.fast = hardware.fast_steps()
        trainer.add_callback(StopAfter(entry.seconds))
        trainer.train()
    yield _found(trainer, trainer.state.global_step * entry.batch_size) | models.count_parameters(model.network)
    longest = max(map(len, rows["labels"]))
    texts = summarize(model, list(some["dialogue"]), Generation(max_new_tokens=longest), progress=False)
    learned = model.tokenizer.batch_decode(list(rows["labels"]), skip_special_tokens=True)
    scores = means(texts, [[text] for text in learned])
    yield {name: round(scores[name], 4) for name in ("rouge1", "rouge2", "rougeL")}
    yield {"word_for_word": sum(text.strip() == own.strip() for text, own in zip(texts, learned, strict=True))}


def stable(
    splits: datasets.DatasetDict, build: Build, *, steps: int = 500, more: int = 20, batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """Train as the study does on FLAN-T5-base, stop at a checkpoint, and go on from it with a model built anew.

    The schedule is that of all steps, as in a run that was interrupted. `loss_before` and `loss_after` are means over
    as many steps before and after the checkpoint as follow it.
    """
    settings = replace(
        EXPERIMENTS["flan-t5-base-dialogsum"].settings["full"], batch_size=batch_size, select_by="loss"
    )  # fmt: skip
    yield {"method": "full", "batch_size": batch_size, "settings": asdict(settings), "more": more}
    rows = encode(splits["train"], build("t5-base", "full").family)

    def trainer() -> SummarizationTrainer:
        return _trainer(build("t5-base", "full"), settings, rows, folder, steps + more)

    with tempfile.TemporaryDirectory() as folder:
        first = trainer()
        first.add_callback(_SaveAndStop(steps))
        first.train()
        found = _found(first, steps * batch_size)
        losses, tenth = found["losses"], max(1, steps // LOGGED // 10)
        begun, ended = _mean(losses[:tenth]), _mean(losses[-tenth:])
        yield found | {"pairs": len(rows), "finite": all(map(math.isfinite, losses))}
        yield {"first_tenth": begun, "last_tenth": ended, "falls": ended < begun}
        del first
        clear_device_cache(garbage_collection=True)
        again = trainer()
        again.train(resume_from_checkpoint=get_last_checkpoint(folder))
    after = _losses(again)[len(losses) :]
    yield {"losses": losses + after, "finite": all(map(math.isfinite, losses + after))}
    yield {"loss_before": _mean(losses[-len(after) :]), "loss_after": _mean(after)}


def _trainer(
    model: models.Model, settings: Settings, rows: datasets.Dataset, folder: str, steps: int
) -> SummarizationTrainer:
    arguments = training_arguments(settings, folder, model, rows)
    arguments.max_steps, arguments.logging_steps = steps, LOGGED
    train_alone(arguments)
    return SummarizationTrainer(model, settings, args=arguments, train_dataset=rows)


def _losses(trainer: SummarizationTrainer) -> list[float]:
    return [round(log["loss"], 4) for log in trainer.state.log_history if "loss" in log]


def _mean(losses: list[float]) -> float:
    return round(sum(losses) / len(losses), 4)


def _found(trainer: SummarizationTrainer, samples: int) -> dict[str, Any]:
    losses = _losses(trainer)
    return {
        "steps": trainer.state.global_step,
        "train_seconds": round(trainer.train_seconds, 1),
        "samples_per_second": round(samples / trainer.train_seconds, 1),
        "peak_memory_bytes": trainer.peak_memory,
        "micro_batch": trainer.args.per_device_train_batch_size,
        "fast": trainer.fast,
        "loss": losses[-1] if losses else None,
        "losses": losses,
    }


class _SaveAndStop(TrainerCallback):
    """Ends training with a checkpoint at a step, before its schedule's end."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: Any, state: transformers.TrainerState, control: transformers.TrainerControl, **_: Any
    ) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
