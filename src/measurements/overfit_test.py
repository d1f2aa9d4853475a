"""Whether FLAN-T5-base's shape learns: it overfits 64 pairs, its loss falls steadily, and it resumes from a checkpoint.

`python -m measurements t5-overfit-full t5-stable`. Weights are random, so ROUGE on memorized pairs says that training
works, and nothing about summaries of other dialogues.
"""

import tempfile
from dataclasses import asdict, replace
from statistics import mean

import datasets
import torch
from accelerate.utils.memory import clear_device_cache

from dialogue_summarization import experiments, generation, rouge, training

from . import short_training

PAIRS, STEPS, LOGGING_STEPS = 64, 1500, 10
STABLE_STEPS, MORE_STEPS, STABLE_BATCH = 500, 20, 64  # before and after the checkpoint
NO_REGULARIZATION = {"schedule": "constant_with_warmup", "weight_decay": 0.0, "select_by": "loss"}
LEARNING_RATES = {"full": 3e-4, "lora-efficient": 1e-2, "lora-balanced": 1e-2, "lora-high-performance": 1e-2}
NAMES = [f"t5-overfit-{method}" for method in LEARNING_RATES]


def overfit(record: dict[str, object], splits: datasets.DatasetDict, options: object = None) -> None:
    """Train on the first pairs, generate their summaries greedily, and score those."""
    method = record["name"].removeprefix("t5-overfit-")
    settings = experiments.Settings(LEARNING_RATES[method], batch_size=16, warmup=0.03, **NO_REGULARIZATION)
    record |= {"model": "t5-base", "method": method, "pairs": PAIRS}
    record |= {"batch_size": settings.batch_size, "settings": asdict(settings)}
    bundle = short_training.build("t5-base", method)
    disable_dropout(bundle.model)
    chosen = splits["train"].take(PAIRS)
    rows = training.encode_split(chosen, bundle.family, references=1)
    record |= short_training.train(bundle, settings, rows, {"max_steps": STEPS, "logging_steps": LOGGING_STEPS})[1]
    greedy = experiments.Generation(max_new_tokens=max(map(len, rows["labels"])))
    texts = generation.summarize(bundle, list(chosen["dialogue"]), greedy, progress=False)
    # The references as the model's tokenizer has them: a summary scores 1 where its tokens are those that were learned.
    learned = [text.strip() for text in bundle.tokenizer.batch_decode(list(rows["labels"]), skip_special_tokens=True)]
    scores = rouge.score_dialogues(texts, [[text] for text in learned]).mean().round(4)
    record |= scores[["rouge1", "rouge2", "rougeL"]].to_dict()
    record["word_for_word"] = sum(text == own for text, own in zip(texts, learned, strict=True))


def stable(record: dict[str, object], splits: datasets.DatasetDict, options: object = None) -> None:
    """Train as the study does on FLAN-T5-base, then once more from a checkpoint on, with a model built anew.

    `loss_before` and `loss_after` are means over as many steps before and after the checkpoint as follow it.
    """
    settings = experiments.EXPERIMENTS["flan-t5-base-dialogsum"].settings["full"]
    settings = replace(settings, batch_size=STABLE_BATCH, select_by="loss")
    record |= {"model": "t5-base", "method": "full", "batch_size": STABLE_BATCH, "settings": asdict(settings)}
    overrides = {"max_steps": STABLE_STEPS + MORE_STEPS, "logging_steps": LOGGING_STEPS}
    overrides |= {"save_strategy": "steps", "save_steps": STABLE_STEPS, "save_total_limit": None}
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint in (None, f"{folder}/checkpoint-{STABLE_STEPS}"):
            bundle = short_training.build("t5-base", "full")
            rows = training.encode_split(splits["train"], bundle.family)
            overrides |= {"output_dir": folder, "resume_from_checkpoint": checkpoint}
            trained = short_training.train(bundle, settings, rows, overrides)[1]
            record |= {"pairs": len(rows), "more": MORE_STEPS, **trained}
            del bundle
            clear_device_cache(garbage_collection=True)
    last = MORE_STEPS // LOGGING_STEPS
    before, after = record["losses"][:-last], record["losses"][-last:]
    tenth = max(1, len(before) // 10)
    parts = {"first_tenth": before[:tenth], "last_tenth": before[-tenth:]}
    parts |= {"loss_before": before[-last:], "loss_after": after}
    record |= {name: round(mean(losses), 4) for name, losses in parts.items()}


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every rate of dropout to 0, the adapter's too; attention keeps its own as a plain number."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
