"""The trainer for a GPU learns what the plain one learns; where memory runs out it goes on with less at once."""

import contextlib
import functools
from dataclasses import replace

import pytest
import torch
import transformers
from helpers import as_if_compiled, hold, interrupt, tiny_experiment, tiny_model, tiny_rows, trainer_of, with_data

from dialogue_summarization import callbacks, experiments, models, study
from dialogue_summarization.acceleration import trainer as accelerated
from dialogue_summarization.acceleration.compilation import transformer_layers
from dialogue_summarization.acceleration.trainer import AcceleratedTrainer
from dialogue_summarization.errors import NotEnoughMemory
from dialogue_summarization.experiments import METHODS, Settings
from dialogue_summarization.training import SummarizationTrainer

TINY = Settings(5e-3, epochs=2, batch_size=4, select_by="loss")
QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "load_best_model_at_end": False}
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 5.99 GiB."
ROWS = tiny_rows(18)  # 5 batches of 4, the last of 2


def limit(model, most, training=True, after=0):
    """Let memory run out in passes of more dialogues at once, from a number of passes on."""
    seen = []

    def hook(module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and module.training == training:
            seen.append(len(ids))
            if len(ids) > most and len(seen) > after:
                raise torch.OutOfMemoryError(MESSAGE)

    part = models.base_model(model)
    part = part.get_encoder() if part.config.is_encoder_decoder else part.get_decoder()
    part.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def accelerated_of(*some, **more):
    return trainer_of(*some, kind=AcceleratedTrainer, **more)


@pytest.fixture(scope="module")
def undisturbed(tiny_models, tiny_data, tmp_path_factory):
    """The trainer of a family and method that has learned from `ROWS`: made for the first test that asks for it."""

    @functools.cache
    def trained(family, method="full"):
        folder = tmp_path_factory.mktemp("undisturbed")
        experiment = with_data(tiny_experiment(tiny_models[family], tiny_data), folder / "data", ROWS)
        trainer = accelerated_of(experiment, TINY, folder, METHODS[method])
        trainer.train()
        return trainer

    return trained


def curve(trainer):
    names = ("loss", "eval_loss", "eval_rouge2", "learning_rate", "step")
    return [{name: entry[name] for name in names if name in entry} for entry in trainer.state.log_history]


def assert_alike(trainer, wanted):
    assert len(curve(wanted)) > 10
    for ours, theirs in zip(curve(trainer), curve(wanted), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)
    for ours, theirs in zip(trainer.model.parameters(), wanted.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


BEGAN, SAVED = "going on from where it began with", "going on from the last checkpoint with"


@pytest.mark.parametrize(
    ("method", "after", "said"),
    [
        ("full", 0, [f"step 1: {BEGAN} 2 x 2", f"step 1: {BEGAN} 4 x 1"]),
        ("full", 3, [f"step 4: {BEGAN} 2 x 2", f"step 1: {BEGAN} 4 x 1"]),  # the weights have moved by then
        ("lora-balanced", 7, [f"step 8: {SAVED} 2 x 2", f"step 6: {SAVED} 4 x 1"]),  # in the second epoch
    ],
)
def test_a_step_that_does_not_fit_changes_nothing(
    tiny, family_name, undisturbed, tmp_path, capsys, method, after, said
):
    experiment, wanted = with_data(tiny, tmp_path / "data", ROWS), undisturbed(family_name, method)
    trainer = accelerated_of(experiment, TINY, tmp_path / "disturbed", METHODS[method])
    limit(trainer.model, 1, after=after)
    capsys.readouterr()
    trainer.train()
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("Out of memory")]
    assert lines == [f"Out of memory at {line} dialogues." for line in said]
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (1, 4)
    assert trainer.state.max_steps == wanted.state.max_steps == 10
    assert_alike(trainer, wanted)
    assert trainer.train_seconds > 0


def test_a_run_that_was_interrupted_goes_on_from_its_checkpoint(tiny, family_name, undisturbed, tmp_path, monkeypatch):
    """Also where memory runs out before there is a checkpoint of this sitting."""
    experiment, wanted = with_data(tiny, tmp_path / "data", ROWS), undisturbed(family_name)
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    first = accelerated_of(experiment, TINY, tmp_path / "disturbed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 4)
        first.train()
    trainer = accelerated_of(experiment, TINY, tmp_path / "other")
    limit(trainer.model, 2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "disturbed" / "checkpoints" / "checkpoint-3"))
    assert_alike(trainer, wanted)


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_one_dialogue_that_does_not_fit_is_an_error_that_says_what_to_do(tiny, tmp_path):
    trainer = accelerated_of(tiny, TINY, tmp_path)
    limit(trainer.model, 0)
    with pytest.raises(NotEnoughMemory, match=r"step 1: not one dialogue.*max_prompt_tokens"):
        trainer.train()


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_other_errors_are_not_mended(tiny, tmp_path):
    trainer, calls = accelerated_of(tiny, TINY, tmp_path), []

    def hook(*_):
        calls.append(1)
        raise RuntimeError("CUDA error: device-side assert triggered")

    trainer.model.register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="device-side"):
        trainer.train()
    assert len(calls) == 1


def test_an_evaluation_that_does_not_fit_changes_nothing(tiny, family_name, undisturbed, tmp_path, capsys):
    experiment, wanted = with_data(tiny, tmp_path / "data", ROWS), undisturbed(family_name)
    trainer = accelerated_of(experiment, TINY, tmp_path / "disturbed")
    seen = limit(trainer.model, 3, training=False)
    capsys.readouterr()
    trainer.train()
    assert f"Out of memory at step 6: {BEGAN} 2 x 2" in capsys.readouterr().out
    assert max(seen) == 4 and trainer.args.per_device_eval_batch_size == 2
    assert_alike(trainer, wanted)


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_the_key_of_a_run_does_not_know_how_much_was_held(tiny, tmp_path, monkeypatch):
    """A run is the same run on any card: its record is found again."""
    keys = set()
    for micro_batch in (4, 1):
        hold(monkeypatch, micro_batch)
        keys.add(study.prepare(tiny, METHODS["full"], outputs=tmp_path).config.key)
    assert len(keys) == 1


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
def test_activations_computed_twice_change_nothing(tiny, family_name, undisturbed, tmp_path, monkeypatch, method):
    experiment, wanted = with_data(tiny, tmp_path / "data", ROWS), undisturbed(family_name, method)
    hold(monkeypatch, 2, checkpointing=True)
    trainer = accelerated_of(experiment, TINY, tmp_path / "twice", METHODS[method])
    passes = []
    layer = next(part for part in transformer_layers(trainer.model)[0].modules() if isinstance(part, torch.nn.Linear))
    layer.register_forward_pre_hook(lambda module, _: passes.append(module) if module.training else None)
    trainer.train()
    assert_alike(trainer, wanted)
    assert len(passes) == 2 * 9 * 2  # in each of 2 epochs 9 micro-batches, forwards and again backwards


class Gradients(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.seen = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
@pytest.mark.parametrize("steps", [contextlib.nullcontext, as_if_compiled])
@pytest.mark.parametrize("micro_batch", [32, 8])
def test_accumulated_gradients_are_those_of_the_models_own_loss(
    tiny, tmp_path, monkeypatch, micro_batch, steps, method
):
    rows = [row | {"summary": row["summary"] * (1 + number % 5)} for number, row in enumerate(tiny_rows(32))]
    experiment = with_data(tiny, tmp_path / "data", rows)
    hold(monkeypatch, micro_batch)
    settings = replace(TINY, epochs=1, batch_size=32, warmup=0, max_grad_norm=0)
    reference, gradients = trainer_of(experiment, settings, tmp_path, METHODS[method]), Gradients()
    loss = reference.model(**reference.bundle.family.collate(list(reference.train_dataset))).loss
    loss.backward()
    with steps():  # compiled ones, whose batches are packed
        trainer = accelerated_of(
            experiment, settings, tmp_path, METHODS[method], more={"callbacks": [gradients]}, **QUIET
        )
        trainer.train()
    assert trainer.is_fast == (steps is as_if_compiled)
    assert trainer.args.per_device_train_batch_size == micro_batch
    assert trainer.state.max_steps == 1 and trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    wanted = {name: weight.grad for name, weight in reference.model.named_parameters() if weight.requires_grad}
    assert max(weight.abs().max() for weight in wanted.values()) > 1e-3
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients.seen[name], gradient, rtol=1e-4, atol=1e-6)


def state(model):
    return {name: weight.cpu().numpy().tobytes() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
@pytest.mark.parametrize(
    "settings", [replace(TINY, max_grad_norm=0.1), replace(TINY, averaged_epochs=2, select_by="rouge2")]
)
def test_it_learns_bit_for_bit_what_the_plain_trainer_learns(tiny, tmp_path, method, settings):
    """Also its own ways to zero and to clip gradients, and to count operations, are Trainer's."""
    ours, plain = (
        trainer_of(tiny, settings, tmp_path / kind.__name__, METHODS[method], kind=kind)
        for kind in (AcceleratedTrainer, SummarizationTrainer)
    )
    for trainer in (ours, plain):
        trainer.train()
    assert "zero_grad" not in vars(ours.model)
    assert ours.state.total_flos == plain.state.total_flos > 0
    assert len(curve(ours)) > 10 and curve(ours) == curve(plain)
    assert state(ours.model) == state(plain.model)


def test_an_interrupted_run_ends_as_one_by_the_plain_trainer(tiny, family_name, tmp_path, monkeypatch):
    tiny_model(family_name, dropout=0.1).save_pretrained(tmp_path / "dropout")
    transformers.AutoTokenizer.from_pretrained(tiny.model).save_pretrained(tmp_path / "dropout")
    experiment = replace(tiny, model=str(tmp_path / "dropout"))
    wanted = study.run(experiment, METHODS["full"], outputs=tmp_path / "plain")
    monkeypatch.setattr(study, "trainer_class", lambda: AcceleratedTrainer)
    for step in (3, 4):  # in the first epoch, then in the second
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, step)
            study.run(experiment, METHODS["full"], outputs=tmp_path / "accelerated")
    run = study.run(experiment, METHODS["full"], outputs=tmp_path / "accelerated")
    assert run.log.drop(columns="seconds").equals(wanted.log.drop(columns="seconds"))
    assert run.predictions.equals(wanted.predictions)
    weights = [(each.weights / "model.safetensors").read_bytes() for each in (run, wanted)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("method", "examples", "compiled", "expected"),
    [
        ("full", 4_999, None, False),  # of two epochs
        ("full", 5_000, None, True),
        ("full", 10, True, True),
        ("full", 100_000, False, False),
        ("prefix-tuning", 100_000, True, False),
    ],
)
def test_steps_are_compiled_where_that_pays(tiny, monkeypatch, method, examples, compiled, expected):
    bundle = models.load_model(tiny)
    bundle = replace(bundle, model=models.apply_method(bundle.model, experiments.method(method)))
    assert not accelerated.steps_are_fast(TINY, bundle, examples, compiled)  # on a CPU
    monkeypatch.setattr(accelerated, "fast_steps_available", lambda: True)
    assert accelerated.steps_are_fast(TINY, bundle, examples, compiled) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0 pytest -k fp16")
@pytest.mark.parametrize("compiled", [False, True])
def test_fp16_skips_steps_that_overflow_and_learns_from_the_others(tiny, tmp_path, compiled):
    trainer = trainer_of(
        tiny, replace(TINY, epochs=8), tmp_path, kind=AcceleratedTrainer, bf16=False, fp16=True, **QUIET
    )
    trainer.is_fast &= compiled
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)  # halved by each step that overflows
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert 10 < trainer.costs()["skipped_steps"] < 30 and losses[-1] < losses[0]
