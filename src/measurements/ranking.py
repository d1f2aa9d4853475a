"""Training on with a ranking loss: `python -m measurements.ranking RUN RANKED DATASET TARGET`.

A summary that scores higher against the reference should be likelier than one that scores lower (BRIO: Liu et al. 2022,
arXiv 2203.16804). `CANDIDATES` is the file that `distill` writes. `TARGET` gets the model.
"""

import json
from collections.abc import Sequence
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from dialogue_summarization import data, hardware, models, runs, study, tokenization
from dialogue_summarization.evaluation import mbr
from dialogue_summarization.generation import summarize
from dialogue_summarization.rouge import score_dialogues, scorer_for

CANDIDATES = 6  # per dialogue: of all that were drawn, evenly from best to worst
MARGIN, LENGTH_POWER = 0.1, 0.6  # as BRIO for XSum's short summaries
MLE_WEIGHT, RANK_WEIGHT = 1.0, 0.3
LEARNING_RATE, EPOCHS, VALIDATIONS = 1e-5, 0.5, 6
BATCH = 16  # dialogues per step


def rank(texts: Sequence[str], reference: str, of_reference: float) -> list[str]:
    """The distinct candidates, best first.

    `of_reference` of their value is the score against the reference, the rest the agreement with the other candidates.
    """
    rouge = scorer_for([[reference]], mbr.MEAN_OF)
    near = [np.mean([score.fmeasure for score in rouge.score(reference, text).values()]) for text in texts]
    values = of_reference * np.array(near) + (1 - of_reference) * mbr.mbr_utility(texts, rouge)
    return list(dict.fromkeys(texts[number] for number in np.argsort(-values, kind="stable")))


def spread(ranked: Sequence[str]) -> list[str]:
    """At most `CANDIDATES` of them, evenly from best to worst."""
    if len(ranked) <= CANDIDATES:
        return list(ranked)
    return [ranked[int(place)] for place in np.linspace(0, len(ranked) - 1, CANDIDATES).round()]


class RankingTrainer(Trainer):
    """Trainer with another loss: that of the reference's tokens, and one that puts candidates in order."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The prompt is read once per dialogue, and its keys and values are repeated for each of its summaries."""
        prompts, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        count = labels.shape[1]
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = model(
            input_ids=prompts[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=places[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        cache.batch_repeat_interleave(count)
        labels = labels.flatten(0, 1)
        kept = labels != tokenization.IGNORE_INDEX
        first = prompts[:, -1:].repeat_interleave(count, dim=0)
        read = torch.cat([first, labels.where(kept, 0)[:, :-1]], dim=1)
        seen = torch.cat([mask.repeat_interleave(count, dim=0), kept[:, :-1].long()], dim=1)
        start = places[:, -1:].repeat_interleave(count, dim=0)
        positions = start + torch.arange(read.shape[1], device=start.device)
        logits = model(
            input_ids=read, attention_mask=seen, position_ids=positions, past_key_values=cache
        ).logits.float()
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        scores = -losses.sum(dim=1) / kept.sum(dim=1).clamp(min=1) ** LENGTH_POWER
        scores = scores.view(-1, count)[:, 1:]
        valid = kept.any(dim=1).view(-1, count)[:, 1:]
        order = torch.zeros((), device=logits.device)
        for distance in range(1, count - 1):
            better, worse = scores[:, :-distance], scores[:, distance:]
            both = valid[:, :-distance] & valid[:, distance:]
            order = order + ((worse - better + MARGIN * distance).clamp(min=0) * both).sum() / both.sum().clamp(min=1)
        own = torch.zeros(labels.shape[0], dtype=torch.bool, device=kept.device)
        own[::count] = True
        chosen = kept & own[:, None]
        mle = cross_entropy(logits[chosen], labels[chosen], label_smoothing=0.1)
        return order * RANK_WEIGHT + MLE_WEIGHT * mle


def collate(family, rows):
    """Prompts padded on the left, and summaries (dialogue, summary, token) on the right: the reference first."""
    batch = family._inputs([row["input_ids"] for row in rows], "left")
    most = max(len(row["summaries"]) for row in rows)
    flat = [ids for row in rows for ids in [*row["summaries"], *[[]] * (most - len(row["summaries"]))]]
    labels = tokenization._pad(flat, tokenization.IGNORE_INDEX, "right")
    return {**batch, "labels": labels.view(len(rows), most, -1)}


def write(folder, ranked, dataset, target, seed=0):
    """Train a run's model on; keep the weights that are best on validation."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # gradients of rows padded on the left are NaN with it
    run, splits = runs.read(Path(folder)), data.load_source(dataset)
    bundle, table = study.load_run(run), json.loads(Path(ranked).read_text("utf-8"))
    validation, best = data.drop_near_duplicates(splits["validation"], splits["train"]), {"score": -1.0}
    rows = []
    for prompt, (_, reference, texts) in zip(bundle.family.encode_all([row[0] for row in table]), table, strict=True):
        summaries = bundle.family._encode_summaries([reference, *spread(texts)])
        rows.append({"input_ids": prompt["input_ids"], "summaries": [ids[:81] for ids in summaries]})

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % max(1, state.max_steps // VALIDATIONS) == 0:
                texts = summarize(bundle, list(validation["dialogue"]), run.experiment.generation)
                scores = score_dialogues(texts, validation["summaries"]).mean()
                print(state.global_step, scores.round(4).to_dict(), np.mean([len(text.split()) for text in texts]))
                if scores[list(mbr.MEAN_OF)].mean() > best["score"]:
                    weights = {name: weight.clone() for name, weight in bundle.model.state_dict().items()}
                    best.update(score=scores[list(mbr.MEAN_OF)].mean(), weights=weights)
                bundle.model.train()

    set_seed(int(seed))
    arguments = TrainingArguments(
        f"{target}/trainer",
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=hardware.precision() == "bf16",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        data_seed=int(seed),
    )
    collator = partial(collate, bundle.family)
    RankingTrainer(bundle.model, arguments, collator, rows, callbacks=[Watch()]).train()
    bundle.model.load_state_dict(best["weights"])
    models.save(bundle, Path(target) / "model", run.experiment.model)


if __name__ == "__main__":
    write(*sys.argv[1:])
