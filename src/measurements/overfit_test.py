"""Whether FLAN-T5-base's shape learns: full fine-tuning overfits 64 pairs. `python -m measurements t5-overfit-full`.

Weights are random, so ROUGE on memorized pairs says that training works, and nothing about other dialogues.
"""

from dataclasses import asdict

import datasets
import torch

from dialogue_summarization import experiments, generation, rouge, training

from . import short_training, tables

PAIRS, STEPS = 64, 1500
SETTINGS = experiments.Settings(
    3e-4, batch_size=16, warmup=0.03, schedule="constant_with_warmup", weight_decay=0.0, select_by="loss"
)


def overfit(record: dict[str, object], splits: datasets.DatasetDict, options: object = None) -> None:
    """Train on the first pairs, generate their summaries greedily, and score those."""
    record |= {"model": "t5-base", "method": "full", "pairs": PAIRS}
    record |= {"batch_size": SETTINGS.batch_size, "settings": asdict(SETTINGS)}
    bundle = short_training.build("t5-base", "full")
    disable_dropout(bundle.model)
    chosen = splits["train"].take(PAIRS)
    rows = training.encode_split(chosen, bundle.family, references=1)
    record |= short_training.train(bundle, SETTINGS, rows, {"max_steps": STEPS, "logging_steps": 10})[1]
    greedy = experiments.Generation(max_new_tokens=max(map(len, rows["labels"])))
    texts = generation.summarize(bundle, list(chosen["dialogue"]), greedy, progress=False)
    # The references as the model's tokenizer has them: a summary scores 1 where its tokens are those that were learned.
    learned = [text.strip() for text in bundle.tokenizer.batch_decode(list(rows["labels"]), skip_special_tokens=True)]
    record |= rouge.score_dialogues(texts, [[text] for text in learned])[tables.MEASURES].mean().round(4).to_dict()


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every rate of dropout to 0; attention keeps its own as a plain number."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
