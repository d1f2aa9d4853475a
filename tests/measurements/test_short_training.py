"""Short trainings of FLAN-T5-base's shape, tiny here."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import tiny_model

from dialogue_summarization import data, experiments, generation, models, rouge, training
from measurements import __main__ as command
from measurements import short_training

SIZE = 300  # of the model's vocabulary: fewer than the tokenizer's 400, so that ids are folded


@pytest.fixture
def splits(tiny_data):
    return data.load_source(str(tiny_data))


@pytest.fixture
def tiny_shape(tiny_models, monkeypatch):
    """`short_training.build` with a tiny T5, whose dropout is as large as FLAN-T5's."""

    def build(name, method):
        assert name == "t5-base"
        tokenizer, _ = models.load_tokenizer(str(tiny_models["t5"]), experiments.experiment("quickstart"))
        family = short_training.FoldedT5(tokenizer, 256, decoder_start_token_id=0, vocabulary=SIZE)
        bundle = models.ModelBundle(tiny_model("t5", SIZE, dropout=0.1), tokenizer, family)
        return replace(bundle, model=models.apply_method(bundle.model, experiments.method(method)))

    monkeypatch.setattr(short_training, "build", build)
    return build


def test_full_training_memorizes_its_pairs(tiny_shape, splits):
    settings = experiments.Settings(1e-2, batch_size=16, schedule="constant_with_warmup", select_by="loss")
    bundle, chosen = tiny_shape("t5-base", "full"), splits["train"].take(16)
    for module in bundle.model.modules():  # nothing is dropped, attention's own rate included
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = training.encode_split(chosen, bundle.family, references=1)
    _, record = short_training.train(bundle, settings, rows, {"max_steps": 100, "logging_steps": 10})
    assert record["steps"] == 100 and len(record["losses"]) == 10 and record["loss"] == record["losses"][-1] < 0.2
    assert record["trainable_parameters"] == record["parameters"]
    greedy = experiments.Generation(max_new_tokens=max(map(len, rows["labels"])))
    texts = generation.summarize(bundle, list(chosen["dialogue"]), greedy, progress=False)
    learned = bundle.tokenizer.batch_decode(list(rows["labels"]), skip_special_tokens=True)  # ids are folded
    scores = rouge.score_dialogues(texts, [[text.strip()] for text in learned]).mean()
    assert scores["rouge1"] > 0.9 and scores["rougeL"] > 0.9


def test_a_failure_is_recorded_with_what_was_found_before(tiny_data, tmp_path, monkeypatch, capsys):
    def build(name, method):
        raise torch.OutOfMemoryError("no room\nfor it")

    monkeypatch.setattr(short_training, "build", build)
    assert command.main(["t5-base-full", "--dataset", str(tiny_data), "--outputs", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "t5-base-full.json").read_text("utf-8"))
    assert (record["name"], record["failed"]) == ("t5-base-full", "OutOfMemoryError: no room")
    assert record["batch_size"] == 64
    assert "no room" in capsys.readouterr().err


def test_random_weights_begin_at_the_loss_of_a_guess(monkeypatch):
    """T5's own head starts with standard deviation 1, and so with a loss in the hundreds at FLAN-T5's width."""
    monkeypatch.setitem(short_training.T5_SHAPES, "t5-tiny", (256, 64, 1, 2))
    torch.manual_seed(0)
    model, ids = short_training.t5("t5-tiny", 400).eval(), torch.arange(5, 45)[None]
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss < 1.5 * math.log(400)


def test_ids_are_folded_alike_in_what_is_read_and_learned(tiny_shape):
    family = tiny_shape("t5-base", "full").family
    words = max(family.tokenizer.get_vocab().values())
    assert words >= SIZE and [family.fold(token) for token in (0, 4, 5, SIZE - 1)] == [0, 4, 5, SIZE - 1]
    assert [family.fold(token) for token in (SIZE, SIZE + 1)] == [5, 6]  # behind five special tokens
    rows = family.encode_all(["Ann: soup?", "Ben: No."], ["Ann wants nine stamps.", "Ben"])
    for row, text in zip(rows, ("Ann wants nine stamps.", "Ben"), strict=True):
        own = family.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row["labels"] == [*map(family.fold, own), 1] and max(row["input_ids"]) < SIZE
