"""How a step is dealt out to several processes, and when a model is divided among them."""

import datasets
import pytest
import torch
from accelerate import PartialState
from helpers import tiny_model

from dialogue_summarization import experiments, hardware, models
from dialogue_summarization.callbacks import GroupedByLength
from dialogue_summarization.commands import models as base_models
from dialogue_summarization.distributed import trainer
from dialogue_summarization.distributed.trainer import BalancedSampler, fill_up, must_shard
from measurements import short_training


@pytest.mark.parametrize("rows, processes", [(17, 2), (16, 2), (33, 4), (3, 4)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_step_has_the_same_dialogues_whatever_the_processes(rows, processes, epoch):
    batch = 8 // processes
    lengths = [10 + 7 * number % 13 for number in range(rows)]
    filled = [*lengths, *[0] * (-rows % 8)]
    order = GroupedByLength(0, 8, lengths)
    order.set_epoch(epoch)
    balanced = list(BalancedSampler(GroupedByLength(0, 8, lengths), lambda: epoch, filled, batch, processes))
    assert len(balanced) == len(filled) and sorted(balanced) == list(range(len(filled)))
    expected = [*order, *range(rows, len(filled))]
    for start in range(0, len(filled), 8):
        step = balanced[start : start + 8]
        assert set(step) == set(expected[start : start + 8])
        tokens = [sum(filled[row] for row in step[at : at + batch]) for at in range(0, 8, batch)]
        assert max(tokens) - min(tokens) <= max(filled[row] for row in step)


@pytest.mark.parametrize("multiple, expected", [(3, 6), (4, 8), (6, 6)])
def test_rows_that_learn_nothing_fill_a_multiple_up_and_no_more(multiple, expected):
    pairs = [{"input_ids": [5, 6, number], "labels": [number], "length": 4} for number in range(6)]
    rows = list(fill_up(datasets.Dataset.from_list(pairs), multiple))
    assert rows == pairs + [{"input_ids": [5], "labels": [], "length": 0}] * (expected - 6)


@pytest.mark.parametrize(("count", "expected"), [(8, 8), (5, 8)])
def test_rows_that_learn_nothing_make_up_a_multiple(count, expected):
    rows = datasets.Dataset.from_list([{"input_ids": [5, 6], "labels": [7], "length": 3, "truncated": False}] * count)
    filled = fill_up(rows, 4)
    assert len(filled) == expected and filled.features == rows.features and list(filled)[:count] == list(rows)
    assert all(row["labels"] == [] and row["input_ids"] == [5] for row in list(filled)[count:])


def test_a_model_is_divided_where_no_device_holds_its_training(monkeypatch):
    monkeypatch.setattr(PartialState(), "num_processes", 2)
    model = tiny_model("llama")
    needed = sum(16 * weight.numel() for weight in model.parameters())  # weight, gradient, AdamW's two moments
    monkeypatch.setattr(trainer, "device_memory", lambda: needed * 21 // 16)
    assert not must_shard(model)
    monkeypatch.setattr(trainer, "device_memory", lambda: needed * 19 // 16)
    assert must_shard(model)
    assert not must_shard(model.requires_grad_(False))


def test_an_xl_is_divided_between_two_gpus_of_42_gib(monkeypatch):
    with torch.device("meta"):
        model = short_training.t5("t5-xl")
        adapter = models.apply_method(short_training.t5("t5-xl"), experiments.method("lora-balanced"))
    assert model.num_parameters() == base_models.BASE_MODELS["flan-t5-xl"].parameters
    monkeypatch.setattr(trainer, "device_memory", lambda: 42 * hardware.GIB)
    assert not must_shard(model)
    monkeypatch.setattr(PartialState(), "num_processes", 2)
    assert must_shard(model) and not must_shard(adapter)
