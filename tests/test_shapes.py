"""FLAN-T5-base's shape, tiny here: it memorizes pairs, its loss falls, and a checkpoint goes on with the same loss."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_network

from dialogue_summarization import benchmark, data, experiments, models, shapes, throughput
from dialogue_summarization.tokenization import T5

SIZE = 300  # of the network's vocabulary: fewer than the tokenizer's 400, so that ids are folded


@pytest.fixture
def splits(tiny_data):
    return data.load_source(str(tiny_data))


@pytest.fixture
def tiny_shape(tiny_models, monkeypatch):
    """`throughput.build` with a tiny T5, whose dropout is as large as FLAN-T5's."""

    def build(name, method):
        assert name == "t5-base"
        tokenizer, _ = models.load_family(str(tiny_models["t5"]), experiments.experiment("quickstart"))
        network = tiny_network("t5", SIZE, dropout=0.1)
        network = models.adapt(network, experiments.method(method))
        return shapes.folded(models.Model(network, tokenizer, T5(tokenizer, 256, 0)))

    monkeypatch.setattr(throughput, "build", build)
    monkeypatch.setattr(shapes, "PAIRS", 16)
    return build


def shorter(monkeypatch, name, **changes):
    monkeypatch.setitem(shapes.ENTRIES, name, replace(shapes.ENTRIES[name], **changes))


def test_full_training_memorizes_its_pairs(tiny_shape, splits, monkeypatch):
    shorter(monkeypatch, "t5-overfit-full", learning_rate=1e-2, steps=250)
    found = benchmark.measure_shape("t5-overfit-full", splits)
    assert "failed" not in found
    assert found["rouge1"] > 0.9 and found["word_for_word"] > 8
    assert found["steps"] == 250 and len(found["losses"]) == 25 and found["loss"] == found["losses"][-1] < 0.2
    assert found["trainable_parameters"] == found["parameters"]


def test_lora_trains_its_adapter_alone_until_the_clock_ends_it(tiny_shape, splits, monkeypatch):
    shorter(monkeypatch, "t5-overfit-lora-balanced", seconds=1, steps=100_000)
    found = benchmark.measure_shape("t5-overfit-lora-balanced", splits)
    assert "failed" not in found, found["failed"]
    assert 2 < found["steps"] < 100_000
    assert found["trainable_parameters"] < found["parameters"] and 0 <= found["rougeL"] <= 1


def test_a_failure_is_recorded_with_what_was_found_before(splits, monkeypatch):
    def build(name, method):
        raise torch.OutOfMemoryError("no room\nfor it")

    monkeypatch.setattr(throughput, "build", build)
    monkeypatch.setattr(shapes, "PAIRS", 16)
    for name in shapes.NAMES:
        found = benchmark.measure_shape(name, splits)
        assert (found["name"], found["failed"]) == (name, "OutOfMemoryError: no room")
        assert found["settings"]["learning_rate"] > 0


def test_a_checkpoint_goes_on_with_the_loss_it_had(tiny_shape, splits):
    build = throughput.build
    found = {}
    for part in shapes.stable(splits, build, steps=300, more=20, batch_size=8):
        found |= part
    assert len(found["losses"]) == 32 and found["finite"] and found["falls"] and found["pairs"] == 16
    assert found["last_tenth"] < found["first_tenth"] - 0.5
    assert abs(found["loss_after"] - found["loss_before"]) < 0.1 * (found["losses"][0] - found["loss_before"])


def test_ids_are_folded_alike_in_what_is_read_and_learned(tiny_shape, splits):
    model = throughput.build("t5-base", "full")
    plain = model.family.tokenizer
    words = max(plain.get_vocab().values())
    assert words >= SIZE and [model.family.fold(token) for token in (0, 4, 5, SIZE - 1)] == [0, 4, 5, SIZE - 1]
    assert [model.family.fold(token) for token in (SIZE, SIZE + 1)] == [5, 6]  # behind five special tokens
    rows = model.family.encode_all(["Ann: soup?", "Ben: No."], ["Ann wants nine stamps.", "Ben"])
    for row, text in zip(rows, ("Ann wants nine stamps.", "Ben"), strict=True):
        own = plain(text, add_special_tokens=False)["input_ids"]
        assert row["labels"] == [*map(model.family.fold, own), 1] and max(row["input_ids"]) < SIZE


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
def test_without_dropout_a_model_in_training_repeats_itself(tiny_shape, method):
    network = throughput.build("t5-base", method).network.train()
    ids = torch.arange(10).reshape(1, 10) + 5

    def logits():
        return network(input_ids=ids, labels=ids).logits

    assert not torch.equal(logits(), logits())
    shapes.without_dropout(network)
    assert torch.equal(logits(), logits())
