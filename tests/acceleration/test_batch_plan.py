"""The estimate of what fits: held to peaks measured on GPUs, and never worse with more memory."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import psutil
import pytest
import torch
from helpers import tiny_experiment, tiny_rows
from hypothesis import given
from hypothesis import strategies as st

from dialogue_summarization import hardware, runs
from dialogue_summarization.acceleration import trainer
from dialogue_summarization.acceleration.memory import (
    CUDA_CONTEXT_BYTES,
    USABLE_FRACTION,
    ModelDims,
    SequenceLengths,
    activation_bytes,
    dims_of,
    generation_tokens,
    lengths_of,
    plan_batch,
    training_bytes,
)
from dialogue_summarization.experiments import Settings, method
from dialogue_summarization.hardware import GIB
from dialogue_summarization.models import apply_method, load_model
from dialogue_summarization.tokenization import IGNORE_INDEX
from dialogue_summarization.training import encode_split, training_arguments
from measurements import card_limits, short_training, tables

SMOLLM2, FLAN_T5_BASE = 134_515_008, 247_577_856
H100 = 85_017_493_504


def smollm2(adapter=0):
    return ModelDims(4 * (SMOLLM2 + adapter), adapter or SMOLLM2, 576, 1536, 9, 49_152, 30, all_trained=not adapter)


def flan_t5_base(adapter=0):
    weights = FLAN_T5_BASE + adapter
    return ModelDims(4 * weights, adapter or weights, 768, 2048, 12, 32_128, 12, 12, not adapter, True)


MODELS = {
    "smollm2-full": smollm2(),
    "smollm2-lora": smollm2(1_843_200),
    "t5-base-full": flan_t5_base(),
    "t5-base-lora": flan_t5_base(3_538_944),
}
# The longest batch of the first 6,000 of DialogSum's pairs, grouped by length, and their mean; T5's were cut at 512.
DIALOGSUM, CUT = SequenceLengths(1024, 181, 278, 115), SequenceLengths(512, 110, 258, 105)
ALL = {name: tables.LENGTHS[name.rpartition("-")[0]] for name in MODELS}  # of all 12,460


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
def test_the_estimate_is_near_the_peaks_measured_on_a_gpu(entry, lengths, packed, off):
    record = json.loads((runs.OUTPUTS / "benchmarks" / f"{entry}.json").read_text())
    dims = next(dims for name, dims in MODELS.items() if Path(entry).name.startswith(name))
    estimate = training_bytes(record["batch_size"], dims, lengths, packed=packed)
    assert estimate == pytest.approx(record["peak_memory_bytes"], rel=off)


def test_a_trained_parameter_takes_16_bytes_and_a_frozen_one_4():
    assert smollm2().state_bytes == 16 * SMOLLM2
    assert smollm2(1_843_200).state_bytes == 4 * SMOLLM2 + 16 * 1_843_200


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [False, True])
def test_an_h100_holds_the_studys_batches_whole(name, packed):
    plan = plan_batch(H100, 32, MODELS[name], ALL[name], packed=packed)
    assert (plan.micro_batch, plan.accumulation, plan.checkpointing) == (32, 1, False)


def test_an_h100_generates_for_as_many_as_the_committed_records_were_generated_for():
    key_bytes = 2 * 30 * 3 * 64 * 4
    for dims in (smollm2(), smollm2(1_843_200)):
        assert generation_tokens(H100, dims, key_bytes, num_beams=4) == int(H100 / 4 / key_bytes / 4)


@pytest.mark.parametrize("gib", [6, 8, 12, 16, 24])
@pytest.mark.parametrize("name", MODELS)
def test_the_study_fits_on_small_gpus(name, gib):
    lengths = ALL[name]
    plan = plan_batch(gib * GIB, 32, MODELS[name], lengths)
    assert plan.bytes < gib * GIB - CUDA_CONTEXT_BYTES and plan.micro_batch >= 2
    assert plan.checkpointing == (name == "t5-base-full" and gib < 12)


@pytest.mark.parametrize("steps", ["", "-packed"])
@pytest.mark.parametrize("gib", card_limits.CARDS)
def test_what_is_planned_for_a_gpu_ran_within_it(gib, steps):
    measured = json.loads((runs.OUTPUTS / "benchmarks" / f"fits-{gib}{steps}.json").read_text())["runs"]
    assert len(measured) == len(MODELS) and not any("failed" in run for run in measured)
    for run, name in zip(measured, MODELS, strict=True):
        plan = plan_batch(gib * GIB, 32, MODELS[name], ALL[name], packed=bool(steps))
        assert run["fast"] == run["packed"] == bool(steps)
        assert run["micro_batch"] == run["planned"]["micro_batch"] == plan.micro_batch
        assert run["planned"]["checkpointing"] == plan.checkpointing
        assert max(run["train_reserved_bytes"], run["generate_reserved_bytes"]) <= gib * GIB - CUDA_CONTEXT_BYTES
        assert run["train_bytes"] <= 1.1 * plan.bytes


any_dims = st.builds(
    ModelDims,
    weight_bytes=st.integers(1, 10**10),
    trained=st.integers(1, 10**9),
    hidden=st.integers(8, 4096),
    inner=st.integers(8, 16_384),
    heads=st.integers(1, 64),
    vocabulary=st.integers(100, 200_000),
    layers=st.integers(1, 80),
    decoder_layers=st.integers(0, 40),
    all_trained=st.booleans(),
    position_bias=st.booleans(),
)
any_lengths = st.builds(
    SequenceLengths,
    prompt=st.integers(1, 2048),
    summary=st.integers(1, 500),
    mean=st.floats(1, 500),
    deviation=st.floats(0, 300),
)
any_memory = st.integers(0, 1 << 37)


@given(any_dims, any_lengths, st.integers(1, 96), st.booleans(), st.booleans(), any_memory, any_memory)
def test_more_memory_is_never_worse(dims, lengths, batch_size, packed, checkpoints, memory, more):
    options = {"packed": packed, "checkpoints": checkpoints}
    less = plan_batch(memory, batch_size, dims, lengths, **options)
    better = plan_batch(memory + more, batch_size, dims, lengths, **options)
    assert (not better.checkpointing, better.micro_batch) >= (not less.checkpointing, less.micro_batch)
    for plan in (less, better):
        assert plan.micro_batch * plan.accumulation == batch_size and (checkpoints or not plan.checkpointing)
    assert less.micro_batch == 1 or less.bytes <= USABLE_FRACTION * (memory - CUDA_CONTEXT_BYTES)
    assert generation_tokens(memory + more, dims, 1000) >= generation_tokens(memory, dims, 1000) >= 1
    kept = [activation_bytes(2, dims, lengths, checkpointing) for checkpointing in (False, True)]
    assert kept[1] <= kept[0] or 1 in (dims.layers, dims.decoder_layers)  # of one layer nothing is saved


@pytest.mark.parametrize("family_name", ["t5", "llama"])
def test_dims_are_read_from_the_model(tiny_models, tiny_data, family_name):
    model = load_model(tiny_experiment(tiny_models[family_name], tiny_data)).model
    whole, size = dims_of(model), sum(weight.numel() for weight in model.parameters())
    decoder_layers = 2 if family_name == "t5" else 0
    assert whole == ModelDims(4 * size, size, 32, 64, 4, 400, 2, decoder_layers, True, family_name == "t5")
    adapted = dims_of(apply_method(model, method("lora-balanced")))
    assert adapted.trained == (adapted.weight_bytes - whole.weight_bytes) // 4 and not adapted.all_trained


def test_dims_are_those_of_the_benchmarks_model():
    with torch.device("meta"):
        assert dims_of(short_training.t5("t5-base")) == flan_t5_base()


def test_lengths_are_those_of_the_pairs():
    pairs = {"input_ids": [[1] * 5, [1] * 9, [1]], "labels": [[2, IGNORE_INDEX], [2] * 3, [2] * 4]}  # 7, 12, 5
    deviation = pytest.approx((26 / 3) ** 0.5)
    assert lengths_of(datasets.Dataset.from_dict(pairs)) == SequenceLengths(9, 4, 8.0, deviation)


@pytest.fixture
def bundle_and_rows(tiny_models, tiny_data):
    bundle = load_model(tiny_experiment(tiny_models["llama"], tiny_data))
    rows = [{"dialogue": row["dialogue"], "summaries": [row["summary"]]} for row in tiny_rows(16)]
    return bundle, encode_split(datasets.Dataset.from_list(rows), bundle.family)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("gib", [4, 6, 8, 15, 24, 80])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 32, 48, 64])
def test_the_effective_batch_is_kept_whatever_the_memory(monkeypatch, tmp_path, bundle_and_rows, kind, gib, batch_size):
    settings = Settings(1e-3, batch_size=batch_size)
    args = training_arguments(settings, tmp_path)
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    monkeypatch.setattr(trainer, "device_memory", lambda: gib * GIB)
    plan = trainer.plan(settings, *bundle_and_rows, args, compiled=False)
    assert plan.micro_batch * plan.accumulation == batch_size


@pytest.mark.parametrize(("gib", "at_once"), [(6, 1), (12, 4), (64, 8)])
def test_a_cpu_holds_few(monkeypatch, tmp_path, bundle_and_rows, gib, at_once):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=gib * GIB))
    settings = Settings(1e-3)
    args = training_arguments(settings, tmp_path)
    plan = trainer.plan(settings, *bundle_and_rows, args, compiled=None)
    assert (plan.micro_batch, plan.accumulation, plan.checkpointing) == (at_once, 32 // at_once, False)


def test_an_xl_fits_on_two_gpus_of_42_gib_that_share_its_state():
    with torch.device("meta"):
        dims = dims_of(short_training.t5("t5-xl"))
    lengths = SequenceLengths(512, 180, 692, 0)
    whole, half = plan_batch(42 * GIB, 4, dims, lengths), plan_batch(42 * GIB, 4, dims.sharded(2), lengths)
    assert whole.bytes > 42 * GIB
    assert half.bytes < 42 * GIB and half.micro_batch * half.accumulation == 4 and not half.checkpointing
