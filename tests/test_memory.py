"""The estimate of what fits: held to peaks measured on a card, and never worse with more memory."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from conftest import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st

from dialogue_summarization import experiments, measured, models, runs, small_cards, throughput
from dialogue_summarization.memory import (
    CONTEXT,
    GIB,
    USABLE,
    Lengths,
    Shape,
    activation_bytes,
    evaluation_bytes,
    generation_tokens,
    lengths_of,
    plan,
    shape_of,
    training_bytes,
)
from dialogue_summarization.tokenization import IGNORED

SMOLLM2, FLAN_T5_BASE = 134_515_008, 247_577_856


def smollm2(adapter=0):
    return Shape(4 * (SMOLLM2 + adapter), adapter or SMOLLM2, 576, 1536, 9, 49_152, 30, all_trained=not adapter)


def flan_t5_base(adapter=0):
    weights = FLAN_T5_BASE + adapter
    return Shape(4 * weights, adapter or weights, 768, 2048, 12, 32_128, 12, 12, not adapter, True)


SHAPES = {
    "smollm2-full": smollm2(), "smollm2-lora": smollm2(1_843_200), "t5-base-full": flan_t5_base(),
    "t5-base-lora": flan_t5_base(3_538_944),
}  # fmt: skip
# The longest batch of the first 6,000 of DialogSum's pairs, grouped by length, and their mean; T5's were cut at 512.
DIALOGSUM, CUT = Lengths(1024, 181, 278, 115), Lengths(512, 110, 258, 105)
ALL = {name: measured.LENGTHS[name.rpartition("-")[0]] for name in SHAPES}  # of all 12,460


@pytest.mark.parametrize(
    ("entry", "lengths", "packed", "off"),
    [
        ("smollm2-full-plain", DIALOGSUM, False, 0.05),
        ("smollm2-lora-plain", DIALOGSUM, False, 0.05),
        ("tried/t5-base-full-plain", CUT, False, 0.05),
        ("t5-base-full-plain", CUT, False, 0.2),  # in 30 steps there was no batch of the longest
        ("smollm2-full", DIALOGSUM, True, 0.2),
        ("smollm2-lora", DIALOGSUM, True, 0.2),
        ("t5-base-full", CUT, True, 0.2),
        ("t5-base-full-batch32", CUT, True, 0.2),
        ("t5-base-full-256", CUT, True, 0.2),
        ("t5-base-lora", CUT, True, 0.2),
    ],
)
def test_the_estimate_is_near_the_peaks_measured_on_a_card(entry, lengths, packed, off):
    record = json.loads((runs.OUTPUTS / "benchmarks" / f"{entry}.json").read_text())
    shape = next(shape for name, shape in SHAPES.items() if Path(entry).name.startswith(name))
    found = training_bytes(record["batch_size"], shape, lengths, packed=packed)
    assert found == pytest.approx(record["peak_memory_bytes"], rel=off)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("packed", [False, True])
def test_an_h100_holds_the_studys_batches_whole(name, packed):
    found = plan(85_017_493_504, 32, SHAPES[name], ALL[name], packed=packed)
    assert (found.micro_batch, found.accumulation, found.checkpointing, found.evaluation_batch) == (32, 1, False, 32)


def test_an_h100_writes_for_as_many_as_the_committed_records_were_written_for():
    key_bytes, memory = 2 * 30 * 3 * 64 * 4, 85_017_493_504
    for shape in (smollm2(), smollm2(1_843_200)):
        assert generation_tokens(memory, shape, key_bytes, num_beams=4) == int(memory / 4 / key_bytes / 4)


@pytest.mark.parametrize("gib", [6, 8, 12, 16, 24])
@pytest.mark.parametrize("name", SHAPES)
def test_the_study_fits_on_small_cards(name, gib):
    lengths = ALL[name]
    found = plan(gib * GIB, 32, SHAPES[name], lengths)
    room = gib * GIB - CONTEXT
    assert found.bytes < room and found.micro_batch >= 2
    assert evaluation_bytes(found.evaluation_batch, SHAPES[name], lengths) < room
    assert found.checkpointing == (name == "t5-base-full" and gib < 12)


@pytest.mark.parametrize("steps", ["", "-packed"])
@pytest.mark.parametrize("gib", small_cards.CARDS)
def test_what_is_planned_for_a_card_ran_within_it(gib, steps):
    found = json.loads((runs.OUTPUTS / "benchmarks" / f"fits-{gib}{steps}.json").read_text())["runs"]
    assert len(found) == len(SHAPES) and not any("failed" in run for run in found)
    for run, name in zip(found, SHAPES, strict=True):
        wanted = plan(gib * GIB, 32, SHAPES[name], ALL[name], packed=bool(steps))
        assert run["fast"] == run["packed"] == bool(steps)
        assert run["micro_batch"] == run["planned"]["micro_batch"] == wanted.micro_batch
        assert run["planned"]["checkpointing"] == wanted.checkpointing
        assert max(run["train_reserved_bytes"], run["generate_reserved_bytes"]) <= gib * GIB - CONTEXT
        assert run["train_bytes"] <= 1.1 * wanted.bytes


shapes = st.builds(
    Shape,
    weight_bytes=st.integers(1, 10**10), trained=st.integers(1, 10**9), hidden=st.integers(8, 4096),
    inner=st.integers(8, 16_384), heads=st.integers(1, 64), vocabulary=st.integers(100, 200_000),
    layers=st.integers(1, 80), decoder_layers=st.integers(0, 40), all_trained=st.booleans(),
    position_bias=st.booleans(),
)  # fmt: skip
lengths = st.builds(
    Lengths,
    prompt=st.integers(1, 2048),
    summary=st.integers(1, 500),
    mean=st.floats(1, 500),
    deviation=st.floats(0, 300),
)


@given(
    shapes, lengths, st.integers(1, 96), st.booleans(), st.booleans(), st.integers(0, 1 << 37), st.integers(0, 1 << 37)
)
def test_more_memory_is_never_worse(shape, lengths, batch_size, packed, checkpoints, memory, more):
    less, found = (
        plan(size, batch_size, shape, lengths, packed=packed, checkpoints=checkpoints)
        for size in (memory, memory + more)
    )
    assert (not found.checkpointing, found.micro_batch) >= (not less.checkpointing, less.micro_batch)
    assert found.evaluation_batch >= less.evaluation_batch
    for one in (less, found):
        assert one.micro_batch * one.accumulation == batch_size and (checkpoints or not one.checkpointing)
    assert less.micro_batch == 1 or less.bytes <= USABLE * (memory - CONTEXT)
    assert generation_tokens(memory + more, shape, 1000) >= generation_tokens(memory, shape, 1000) >= 1
    kept = [activation_bytes(2, shape, lengths, checkpointing) for checkpointing in (False, True)]
    assert kept[1] <= kept[0] or shape.layers == 1  # of one layer nothing is saved


@pytest.mark.parametrize("family_name", ["t5", "llama"])
def test_a_shape_is_read_from_the_model(tiny_models, tiny_data, family_name):
    model = models.load(tiny_experiment(tiny_models[family_name], tiny_data))
    whole, size = shape_of(model.network), sum(weight.numel() for weight in model.network.parameters())
    decoder = 2 if family_name == "t5" else 0
    assert whole == Shape(4 * size, size, 32, 64, 4, 400, 2, decoder, True, family_name == "t5")
    adapted = shape_of(models.adapt(model.network, experiments.method("lora-balanced")))
    assert adapted.trained == (adapted.weight_bytes - whole.weight_bytes) // 4 and not adapted.all_trained


def test_a_shape_is_that_of_the_benchmarks_model():
    with torch.device("meta"):
        assert shape_of(throughput.t5("t5-base")) == flan_t5_base()


def test_lengths_are_those_of_the_pairs():
    pairs = {"input_ids": [[1] * 5, [1] * 9, [1]], "labels": [[2, IGNORED], [2] * 3, [2] * 4]}
    assert lengths_of(datasets.Dataset.from_dict(pairs)) == Lengths(
        9, 4, 8.0, pytest.approx((26 / 3) ** 0.5)
    )  # 7, 12, 5
