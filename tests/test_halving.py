"""Where memory runs out, training, evaluation and generation go on with less at once, and nothing else changes."""

import pytest
import torch
from conftest import hold, tiny_rows
from test_training import GENERATION, TINY, trainer_of, with_data

from dialogue_summarization import data, fast, likelihood, models, study, trainer_parts
from dialogue_summarization.experiments import METHODS
from dialogue_summarization.generation import summarize
from dialogue_summarization.hardware import NotEnoughMemory

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 5.99 GiB."
ROWS = tiny_rows(18)  # 5 batches of 4, the last of 2


def limit(network, most, training=True, after=0):
    """Let memory run out in passes of more dialogues at once, from a number of passes on."""
    seen = []

    def hook(module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and module.training == training:
            seen.append(len(ids))
            if len(ids) > most and len(seen) > after:
                raise torch.OutOfMemoryError(MESSAGE)

    part = fast.base_of(network)
    part = part.get_encoder() if part.config.is_encoder_decoder else part.get_decoder()
    part.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


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
def test_a_step_that_does_not_fit_changes_nothing(tiny, tmp_path, capsys, method, after, said):
    experiment = with_data(tiny, tmp_path / "data", ROWS)
    wanted = trainer_of(experiment, TINY, tmp_path / "undisturbed", METHODS[method])
    wanted.train()
    trainer = trainer_of(experiment, TINY, tmp_path / "disturbed", METHODS[method])
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


def test_a_run_that_was_interrupted_goes_on_from_its_checkpoint(tiny, tmp_path, monkeypatch):
    """Also where memory runs out before there is a checkpoint of this sitting."""
    experiment = with_data(tiny, tmp_path / "data", ROWS)
    monkeypatch.setattr(trainer_parts, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    wanted = trainer_of(experiment, TINY, tmp_path / "undisturbed")
    wanted.train()
    first = trainer_of(experiment, TINY, tmp_path / "disturbed", save_total_limit=None)
    first.train()
    trainer = trainer_of(experiment, TINY, tmp_path / "other")
    limit(trainer.model, 2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "disturbed" / "checkpoints" / "checkpoint-3"))
    assert_alike(trainer, wanted)


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_one_dialogue_that_does_not_fit_is_an_error_that_says_what_to_do(tiny, tmp_path):
    trainer = trainer_of(tiny, TINY, tmp_path)
    limit(trainer.model, 0)
    with pytest.raises(NotEnoughMemory, match=r"step 1: not one dialogue.*max_prompt_tokens"):
        trainer.train()
    for call in (
        trainer.evaluate,
        lambda: summarize(trainer.parts, ["Ann: Hi.", "Ben: No."], GENERATION, progress=False),
        lambda: likelihood.log_likelihoods(trainer.parts, ["Ann: Hi."], [(0, "Hello.")]),
    ):
        limit(trainer.model, 0, training=False)
        with pytest.raises(NotEnoughMemory, match=r"one dialogue\. .*max_prompt_tokens"):
            call()


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_other_errors_are_not_mended(tiny, tmp_path):
    trainer, calls = trainer_of(tiny, TINY, tmp_path), []

    def hook(*_):
        calls.append(1)
        raise RuntimeError("CUDA error: device-side assert triggered")

    trainer.model.register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="device-side"):
        trainer.train()
    assert len(calls) == 1


def test_what_is_evaluated_and_written_does_not_depend_on_how_much_fits(tiny, tmp_path, capsys):
    trainer = trainer_of(with_data(tiny, tmp_path / "data", ROWS), TINY, tmp_path, per_device_eval_batch_size=16)
    rows, model = data.load(tiny)["test"], trainer.parts
    dialogues, others = rows["dialogue"], [(place, texts[0]) for place, texts in enumerate(rows["summaries"])]
    wanted = trainer.evaluate()["eval_loss"]
    texts = summarize(model, dialogues, GENERATION, progress=False)
    likely = likelihood.log_likelihoods(model, dialogues, others)
    seen = limit(trainer.model, 3, training=False)
    capsys.readouterr()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, abs=1e-5)
    assert max(seen[:-1]) == 16 and trainer.args.per_device_eval_batch_size == 2
    assert summarize(model, dialogues, GENERATION, progress=False) == texts
    assert likelihood.log_likelihoods(model, dialogues, others) == pytest.approx(likely, abs=1e-5)
    out = capsys.readouterr().out
    assert "while evaluating 16 dialogues at a time: going on with 8." in out
    assert "while writing summaries of 5 dialogues at a time: going on with 2." in out


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_the_key_of_a_run_does_not_know_how_much_was_held(tiny, tmp_path, monkeypatch):
    """A run is the same run on any card: its record is found again."""
    keys = set()
    for micro_batch in (4, 1):
        hold(monkeypatch, micro_batch)
        keys.add(study.prepare(tiny, METHODS["full"], outputs=tmp_path).config.key)
    assert len(keys) == 1


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
def test_activations_computed_twice_change_nothing(tiny, tmp_path, monkeypatch, method):
    experiment = with_data(tiny, tmp_path / "data", ROWS)
    wanted = trainer_of(experiment, TINY, tmp_path / "kept", METHODS[method])
    wanted.train()
    hold(monkeypatch, 2, checkpointing=True)
    trainer = trainer_of(experiment, TINY, tmp_path / "twice", METHODS[method])
    passes = []
    layer = next(part for part in fast.blocks(trainer.model)[0].modules() if isinstance(part, torch.nn.Linear))
    layer.register_forward_pre_hook(lambda module, _: passes.append(module) if module.training else None)
    trainer.train()
    assert_alike(trainer, wanted)
    assert len(passes) == 2 * 9 * 2  # in each of 2 epochs 9 micro-batches, forwards and again backwards


def test_virtual_tokens_are_not_lost_to_checkpoints(tiny):
    network = models.load(tiny).network
    assert not models.has_virtual_tokens(network)
    assert models.has_virtual_tokens(models.adapt(network, METHODS["prefix-tuning"]))
