"""What the records say: tables take what is there, and planned cards are those of the study's data."""

from dataclasses import astuple

import pytest
from helpers import SHARED

from dialogue_summarization import data, experiments, models
from dialogue_summarization.acceleration import memory
from dialogue_summarization.hardware import GIB
from dialogue_summarization.training import encode_split
from measurements import tables, throughput
from measurements.__main__ import MEASURES

FITS = {
    "name": "fits-8",
    "gib": 8.0,
    "runs": [
        {"model": "smollm2", "method": "full", "packed": False, "micro_batch": 1, "train_bytes": 5 * GIB},
        {"model": "t5-base", "method": "full", "packed": False, "failed": "NotEnoughMemory: no"},
    ],
}  # fmt: skip


def test_a_card_is_planned_until_it_is_measured(write):
    planned = tables.cards({}, [8]).loc["8 GB"]
    assert len(planned) == 4 and planned.str.fullmatch(r"\d+ × \d+(, checkpointing)?; planned \d+\.\d").all()
    measured = tables.cards(write(FITS), [8]).loc["8 GB"]
    added = [after.removeprefix(before) for before, after in zip(planned, measured, strict=True)]
    assert added == [", measured 5.4, halved to 1", "", ", NotEnoughMemory", ""]
    assert measured["SmolLM2-135M, full"].startswith("2 × 16; ")
    assert measured["FLAN-T5-Base's shape, full"].endswith(", NotEnoughMemory")


def test_what_is_expected_can_be_measured():
    assert set(tables.EXPECTED) <= set(MEASURES) and len(tables.EXPECTED) > 20


def test_several_gpus_are_held_against_one(write):
    entry = {"model": "smollm2", "method": "full", "fast": True, "sharded": False, "device": "a card"}
    one = {"name": "a", "gpus": 1, "batch_size": 8, "samples_per_second": 100.0, "losses": [2.0, 1.0]}
    two = {"name": "a-gpus2", "gpus": 2, "batch_size": 8, "samples_per_second": 150.0, "losses": [2.0, 1.002]}
    part = {"name": "a-batch4", "gpus": 1, "batch_size": 4, "samples_per_second": 80.0, "losses": []}
    measured = {"step_milliseconds": 53.3, "all_reduce_milliseconds": 5.0, "peak_memory_bytes": GIB}
    alone = {"step_milliseconds": 80.0, "peak_memory_bytes": 2 * GIB}
    records = write(entry | one | alone, entry | two | measured, entry | part | alone | {"step_milliseconds": 50.0})
    [row] = tables.several_gpus(records).reset_index().to_dict("records")
    heads = ("speed-up", "losses differ by", "gradient sync (ms)", "one GPU, batch / n (ms)")
    assert [row[name] for name in heads] == ["1.50", "0.0020", "5.00", "50"]
    assert [row[name] for name in ("peak memory on one (GB)", "each (GB)", "GPUs")] == ["2.1", "1.1", 2]
    del one["losses"], one["samples_per_second"]
    failed = write(entry | one | {"failed": "NotEnoughMemory: no"}, entry | two | measured)
    [row] = tables.several_gpus({name: failed[name] for name in ("a", "a-gpus2")}).to_dict("records")
    assert (row["samples/s on one"], row["speed-up"], row["one GPU, batch / n (ms)"]) == ("out of memory", "–", "–")
    assert tables.several_gpus({}).empty


def test_weights_are_measured_as_recorded():
    record, recorded = {}, tables.load()["weights"]["bytes"]
    throughput.measure_weights(record)
    measured = record["bytes"]
    assert {"zero-shot", "zero-shot-int8-cpu"} <= measured.keys()
    assert measured == {name: recorded[name] for name in measured}


@pytest.mark.skipif(not (SHARED / "dialogsum").is_dir(), reason="needs shared/dialogsum")
def test_cards_are_planned_for_the_lengths_that_dialogsum_has():
    study = experiments.experiment("smollm2-dialogsum")
    _, family = models.load_tokenizer(models.local_snapshot(study.model), study)
    lengths = memory.lengths_of(encode_split(data.load_source(str(SHARED / "dialogsum"))["train"], family))
    assert astuple(lengths) == pytest.approx(astuple(tables.LENGTHS["smollm2"]), abs=1)
