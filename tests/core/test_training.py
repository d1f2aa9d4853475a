"""Training: its loss is the right one, it learns, repeats, chooses, stops, and says when it diverges."""

import math
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from helpers import tiny_experiment, tiny_model, tiny_rows, trainer_of, with_data
from transformers.integrations import integration_utils

from dialogue_summarization import data, hardware, models, training
from dialogue_summarization.errors import ConfigurationError, NotEnoughMemory, TrainingDiverged, UserError
from dialogue_summarization.experiments import METHODS, Generation, Settings
from dialogue_summarization.generation import summarize
from dialogue_summarization.rouge import score_dialogues

BIG = replace(METHODS["lora-balanced"], peft=METHODS["lora-balanced"].peft | {"r": 32, "lora_alpha": 32})
TINY = Settings(5e-3, epochs=2, batch_size=4, select_by="loss")
FAST = replace(TINY, learning_rate=1e-2, batch_size=8)
EPOCHS = {"t5": 45, "llama": 100}  # enough to learn eight summaries by heart
GENERATION = Generation(max_new_tokens=30)
QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "load_best_model_at_end": False}


def test_a_training_waits_for_no_process_that_is_not_there(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=r"WORLD_SIZE=2.*unset WORLD_SIZE"):
        training.trainer_class()
    monkeypatch.delenv("WORLD_SIZE")
    assert training.trainer_class() is training.SummarizationTrainer


@pytest.mark.parametrize(("patched", "error"), [("free_memory", NotEnoughMemory), ("shutil", UserError)])
def test_a_training_that_cannot_end_does_not_begin(tiny, tmp_path, monkeypatch, patched, error):
    trainer = trainer_of(tiny, FAST, tmp_path)
    size = 4 * models.count_parameters(trainer.model)["trainable_parameters"]
    # Gradients and two moments in memory. On disk: two checkpoints of three parts each, and the model.
    needed = {"free_memory": 3 * size, "shutil": 7 * size}[patched]
    for free in (needed - 1, needed):
        disk = SimpleNamespace(disk_usage=lambda _, free=free: SimpleNamespace(free=free))
        monkeypatch.setattr(hardware, patched, disk if patched == "shutil" else lambda free=free: free)
        if free < needed:
            with pytest.raises(error, match="GB"):
                trainer.train()
            assert trainer.state.global_step == 0
        else:
            trainer.train()


def train(*some, **more):
    trainer = trainer_of(*some, **more)
    trainer.train()
    return trainer


def state(model):
    return {name: weight.cpu().numpy().tobytes() for name, weight in model.state_dict().items()}


def summaries(bundle, rows):
    return summarize(bundle, rows["dialogue"], GENERATION, progress=False)


def rouge(bundle, rows, name="rouge1"):
    return score_dialogues(summaries(bundle, rows), rows["summaries"])[name].mean()


def logits_and_labels(bundle, rows):
    """At the summaries' tokens, of one pair after another, without padding."""
    pairs = []
    for row in rows:
        prompt, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        if bundle.model.config.is_encoder_decoder:
            start = torch.tensor([bundle.model.config.decoder_start_token_id])
            inputs = {"input_ids": prompt[None], "decoder_input_ids": torch.cat([start, labels[:-1]])[None]}
            pairs.append((bundle.model(**inputs).logits[0], labels))
        else:
            logits = bundle.model(input_ids=torch.cat([prompt, labels])[None]).logits[0]
            pairs.append((logits[len(prompt) - 1 : -1], labels))
    return [torch.cat(parts) for parts in zip(*pairs, strict=True)]


def test_a_checkpoint_is_chosen_by_rouge_in_any_script(tiny, tmp_path, monkeypatch):
    rows = [row | {"summary": f"{row['id']}：他们明天去北京。"} for row in tiny_rows(4)]
    trainer = trainer_of(with_data(tiny, tmp_path / "data", rows), replace(TINY, select_by="rouge2"), tmp_path)
    monkeypatch.setattr(trainer, "summaries", lambda dialogues: [rows[0]["summary"]] * len(dialogues))
    assert 0.7 < trainer.evaluate()["eval_rouge2"] < 1
    monkeypatch.setattr(trainer, "summaries", lambda dialogues: [row["summary"] for row in rows])
    assert trainer.evaluate()["eval_rouge2"] == 1


def test_every_weight_learns_eight_summaries_by_heart(tiny, family_name, tmp_path):
    experiment, settings = with_data(tiny, tmp_path / "data", tiny_rows(8)), replace(FAST, epochs=EPOCHS[family_name])
    assert rouge(train(experiment, settings, tmp_path, **QUIET).bundle, data.load(experiment)["train"]) > 0.9


def test_an_adapter_on_a_trained_base_learns_eight_summaries_by_heart(tiny, family_name, tmp_path):
    other = with_data(tiny, tmp_path / "other", tiny_rows(32, start=8))
    base = train(other, replace(FAST, epochs={"t5": 8, "llama": 40}[family_name]), tmp_path, **QUIET)
    models.save(base.bundle, tmp_path / "base", tiny.model)
    rows = tiny_rows(8)
    swapped = [row | {"summary": rows[number - 5]["summary"]} for number, row in enumerate(rows)]
    experiment = with_data(tiny_experiment(tmp_path / "base", ""), tmp_path / "data", swapped)
    split = data.load(experiment)["train"]
    assert rouge(models.load_model(experiment), split) < 0.7
    settings = replace(FAST, learning_rate=2e-2, epochs=EPOCHS[family_name])
    assert rouge(train(experiment, settings, tmp_path, BIG, **QUIET).bundle, split) > 0.9


class Gradients(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.seen = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
@pytest.mark.parametrize("micro_batch", [32, 8])
def test_accumulated_gradients_are_those_of_the_models_own_loss(tiny, tmp_path, micro_batch, method):
    rows = [row | {"summary": row["summary"] * (1 + number % 5)} for number, row in enumerate(tiny_rows(32))]
    experiment = with_data(tiny, tmp_path / "data", rows)
    settings = replace(TINY, epochs=1, batch_size=32, warmup=0, max_grad_norm=0)
    held = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": 32 // micro_batch}
    reference, gradients = trainer_of(experiment, settings, tmp_path, METHODS[method]), Gradients()
    loss = reference.model(**reference.bundle.family.collate(list(reference.train_dataset))).loss
    loss.backward()
    trainer = train(experiment, settings, tmp_path, METHODS[method], more={"callbacks": [gradients]}, **QUIET, **held)
    assert trainer.state.max_steps == 1 and trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    wanted = {name: weight.grad for name, weight in reference.model.named_parameters() if weight.requires_grad}
    assert max(weight.abs().max() for weight in wanted.values()) > 1e-3
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients.seen[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eval_batch", [1, 4, 7, 64])
def test_loss_is_torchs_over_summary_tokens_and_validation_loss_without_smoothing(tiny, tmp_path, eval_batch):
    rows = [row | {"summary": row["summary"] * (1 + number % 7)} for number, row in enumerate(tiny_rows(6, 3))]
    changed, settings = with_data(tiny, tmp_path / "data", tiny_rows(4), rows), replace(TINY, label_smoothing=0.2)
    trainer = trainer_of(changed, settings, tmp_path, per_device_eval_batch_size=eval_batch)
    logits, labels = logits_and_labels(trainer.bundle, trainer.eval_dataset)
    expected = -logits.log_softmax(dim=-1)[range(len(labels)), labels].mean().item()
    metrics = trainer.evaluation_loop(trainer.get_eval_dataloader(), "evaluation").metrics
    assert len(trainer.eval_dataset) == 18 and metrics["eval_loss"] == pytest.approx(expected, abs=1e-5)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.2)(logits, labels).item()
    loss = trainer.compute_loss(trainer.model.train(), trainer.bundle.family.collate(list(trainer.eval_dataset)))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_a_trainer_evaluates_before_it_trains(tiny, tmp_path):
    trainer = trainer_of(tiny, TINY, tmp_path)
    before = trainer.evaluate()["eval_loss"]
    time.sleep(2)
    start = time.perf_counter()
    trainer.train()
    assert trainer.train_seconds < time.perf_counter() - start
    assert trainer.evaluate()["eval_loss"] < before


@pytest.mark.parametrize("learning_rate", [1e30, 1e-3])
def test_a_loss_that_is_no_number_stops_training(tiny, tmp_path, learning_rate):
    trainer = trainer_of(tiny, replace(TINY, learning_rate=learning_rate, warmup=0), tmp_path)
    if learning_rate < 1:
        trainer.model.get_output_embeddings().weight.data[7] = torch.nan
    with pytest.raises(TrainingDiverged) as raised:
        trainer.train()
    finite = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(map(math.isfinite, finite)) and (len(finite) > 0) == (learning_rate > 1)
    assert f"step {len(finite) + 1} of 8" in str(raised.value) and f"{learning_rate:g}" in str(raised.value)


@pytest.mark.parametrize(
    ("family_name", "method"), [("t5", "lora-balanced"), ("llama", "full")], indirect=["family_name"]
)
def test_a_run_repeats_bit_for_bit(tiny, family_name, tmp_path, method):
    experiment = replace(tiny, model=str(shutil.copytree(tiny.model, tmp_path / "dropout")))
    tiny_model(family_name, dropout=0.1).save_pretrained(experiment.model)
    results = []
    for seed in (3, 3, 4):
        trainer = train(experiment, replace(TINY, epochs=1), tmp_path, METHODS[method], seed=seed)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results.append((state(trainer.model), losses, summaries(trainer.bundle, data.load(experiment)["test"])))
    first, second, other = results
    assert first == second
    assert first[0] != other[0] and first[1] != other[1]


class SpoilLastEpoch(transformers.TrainerCallback):
    def on_epoch_end(self, args, state_, control, model=None, **_):
        self.epochs = getattr(self, "epochs", [])
        if len(self.epochs) + 1 == args.num_train_epochs:
            model.get_output_embeddings().weight.data.mul_(-1)
        self.epochs.append(state(model))


@pytest.mark.parametrize(
    ("family_name", "select_by"), [("t5", "rouge2"), ("llama", "rouge2"), ("llama", "loss")], indirect=["family_name"]
)
def test_the_best_checkpoint_is_kept(tiny, tmp_path, select_by):
    many = [row | {"summary": [row["summary"]] * 10} for row in tiny_rows(8)]  # 10 steps an epoch
    experiment = with_data(tiny, tmp_path / "data", many, tiny_rows(8))
    settings, spoil = replace(FAST, epochs=4, select_by=select_by), SpoilLastEpoch()
    trainer = train(experiment, settings, tmp_path, more={"callbacks": [spoil]})
    values = [entry[f"eval_{select_by}"] for entry in trainer.state.log_history if f"eval_{select_by}" in entry]
    best = values.index(max(values) if select_by == "rouge2" else min(values))
    assert len(values) == 4 and best < 3 and values[3] != values[best]
    assert spoil.epochs[best] == state(trainer.model) != spoil.epochs[3]
    if select_by == "rouge2":
        assert values[best] == pytest.approx(rouge(trainer.bundle, data.load(experiment)["validation"], "rouge2"))


class EachEpoch(transformers.TrainerCallback):
    """The trained weights at the end of each epoch."""

    def __init__(self):
        self.weights = []

    def on_epoch_end(self, args, state, control, model, **_):
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()
                             if weight.requires_grad})  # fmt: skip


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
def test_the_mean_of_the_last_epochs_is_kept(tiny, tmp_path, method):
    settings, seen = replace(TINY, epochs=4, averaged_epochs=3, select_by="rouge2"), EachEpoch()
    trainer = train(tiny, settings, tmp_path, METHODS[method], more={"callbacks": [seen]})
    last = dict(trainer.model.named_parameters())
    for name in seen.weights[0]:
        expected = sum(epoch[name].double() for epoch in seen.weights[1:]) / 3
        torch.testing.assert_close(last[name].detach().double(), expected, rtol=1e-5, atol=1e-7)
    scored = [entry["eval_rouge2"] for entry in trainer.state.log_history if "eval_rouge2" in entry]
    assert scored == [pytest.approx(rouge(trainer.bundle, data.load(tiny)["validation"], "rouge2"))]
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 5


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (3, 4), (None, 6)])
def test_training_stops_where_nothing_improves(tiny, tmp_path, patience, epochs):
    trainer = train(tiny, replace(TINY, learning_rate=0.0, epochs=6, patience=patience), tmp_path)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.epoch == epochs and losses[:4] != losses[4:8]  # each epoch has an order of its own


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("asked", "is_tracked", "has_files"),
    [(None, False, True), ("wandb,tensorboard", True, True), ("none", False, False)],
)
def test_trackers_are_those_that_are_asked_for(tiny, tmp_path, monkeypatch, asked, is_tracked, has_files):
    tracked = []

    class Tracker(transformers.TrainerCallback):
        def on_log(self, *_, logs, **__):
            tracked.append(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    if asked:
        monkeypatch.setenv("STUDY_REPORT_TO", asked)
    trainer = train(tiny, replace(TINY, epochs=1), tmp_path)
    assert any("loss" in logs for logs in tracked) == is_tracked and trainer.state.log_history
    assert any(tmp_path.rglob("events.out.tfevents*")) == has_files


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_seconds_grow_and_leave_evaluation_out(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "summarize", lambda *some, **more: time.sleep(1) or summarize(*some, **more))
    trainer = trainer_of(tiny, replace(TINY, select_by="rouge2", epochs=3), tmp_path)
    start = time.perf_counter()
    trainer.train()
    wall, log = time.perf_counter() - start, trainer.state.log_history
    seconds = [entry["seconds"] for entry in log if "loss" in entry]
    assert len(seconds) == trainer.state.max_steps == 12
    assert seconds == sorted(seconds) and 0 <= seconds[0] < seconds[-1] <= trainer.train_seconds + 0.01 <= wall - 3
