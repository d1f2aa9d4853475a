"""What the records say: growth is measured, tables take what is there, the summary is that of the records."""

import json
from dataclasses import astuple

import pandas as pd
import pytest
from conftest import SHARED, tiny_experiment

from dialogue_summarization import (
    benchmark,
    data,
    experiments,
    growth,
    growth_report,
    headlines,
    measured,
    memory,
    models,
    runs,
    throughput,
    whole_study,
)
from dialogue_summarization.memory import GIB
from dialogue_summarization.trainer_parts import GroupedByLength
from dialogue_summarization.training import encode

FITS = {
    "name": "fits-8",
    "gib": 8.0,
    "runs": [
        {"model": "smollm2", "method": "full", "packed": False, "micro_batch": 1, "train_bytes": 5 * GIB},
        {"model": "t5-base", "method": "full", "packed": False, "failed": "NotEnoughMemory: no"},
    ],
}  # fmt: skip


def write(folder, *entries):
    for entry in entries:
        (folder / f"{entry['name']}.json").write_text(json.dumps(entry), encoding="utf-8")
    return measured.records(folder)


@pytest.fixture
def build(tiny_models, tiny_data):
    def fresh(model, method):
        family = "t5" if model.startswith("t5") else "llama"
        return models.load(tiny_experiment(tiny_models[family], tiny_data))

    return fresh


def test_growth_measures_each_point_and_says_which_failed(build, monkeypatch):
    wanted = [
        growth.Point("length", tokens=48, batch_size=2),
        growth.Point("length", tokens=1_500, batch_size=2),
        growth.Point("model", model="t5-base", batch_size=2, tokens=64),
        growth.Point("rank", rank=2, batch_size=2, tokens=48),
        growth.Point("rank", rank=4, batch_size=2, tokens=48),
    ]
    found = growth.measure(build, wanted, steps=3, warm_up=1)
    assert [row["value"] for row in found] == [48, 1_500, "t5-base", 2, 4]
    assert found[1]["step_seconds"] > found[0]["step_seconds"] > 0
    assert found[0]["trainable_parameters"] == found[0]["parameters"]
    assert found[4]["trainable_parameters"] == 2 * found[3]["trainable_parameters"] > 0

    def fails(*_):
        raise RuntimeError("CUDA out of memory\nmuch more")

    monkeypatch.setattr(growth, "_measure", fails)
    assert growth.measure(build, wanted[:1], 1, 0)[0]["failed"] == "RuntimeError: CUDA out of memory"


def test_the_benchmark_writes_growth_under_the_devices_name(build, monkeypatch):
    monkeypatch.setattr(throughput, "build", build)
    monkeypatch.setattr(growth, "points", lambda on_card: [growth.Point("batch", batch_size=1, tokens=48)])
    found = benchmark.measure_growth()
    assert found["name"] == "growth-cpu" and found["points"][0]["samples_per_second"] > 0
    assert "peak_memory_bytes" not in found["points"][0]


@pytest.mark.parametrize("on_card", [True, False])
def test_one_thing_changes_at_a_time(on_card):
    wanted = growth.points(on_card)
    assert {point.question for point in wanted} == set(growth_report.QUESTIONS)
    for question in growth_report.QUESTIONS:
        some = [point for point in wanted if point.question == question]
        names = {"length": "tokens", "batch": "batch_size"}
        for name in {"tokens", "batch_size", "model", "rank"} - {names.get(question, question)}:
            assert len({getattr(point, name) for point in some}) == 1
        assert len({point.value for point in some}) == len(some) >= 2


def test_a_card_is_planned_until_it_is_measured(tmp_path):
    planned = measured.cards({}, [8])
    assert set(planned["measured GiB"]) == {"–"} and len(planned) == 4
    table = measured.cards(write(tmp_path, FITS), [8])
    assert list(table["measured GiB"]) == ["5.0, halved to 1", "–", "NotEnoughMemory", "–"]
    assert table.drop(columns="measured GiB").equals(planned.drop(columns="measured GiB"))
    glance = measured.advice(measured.records(tmp_path)).loc["8 GiB"]
    assert glance["SmolLM2-135M, full"] == "2 × 16; 5.0, halved to 1 GiB"
    assert glance["FLAN-T5-Base's shape, full"].endswith("; NotEnoughMemory") and "planned" in glance.iloc[1]


def test_parts_add_up_and_adapters_save_what_is_not_trained():
    table = measured.parts()
    assert len(table) == 4 and (table["in all"] - table.drop(columns="in all").sum(axis=1)).abs().max() < 0.03
    t5 = table.loc["FLAN-T5-Base's shape"]
    assert t5.loc["full", "AdamW"] == pytest.approx(8 * 247_577_856 / GIB, abs=0.01)
    assert t5.loc["lora-balanced", "AdamW"] == pytest.approx(8 * 3_538_944 / GIB, abs=0.01)
    assert measured.parts_figure(table).axes


def test_what_is_missing_is_named_with_its_command(tmp_path):
    found = write(tmp_path, FITS)
    said = measured.missing(found, ("fits-8", "growth", "t5-base-full"))
    assert said == (
        "Not measured yet: growth, t5-base-full. On the device in question:\n"
        "uv run python -m dialogue_summarization.benchmark growth t5-base-full --dataset PATH"
    )
    assert measured.missing(found, ["fits-8"]) == "Nothing is missing."
    known = {*throughput.ENTRIES, *whole_study.NAMES, "growth"}
    assert all(name in known or name.startswith(("fits-", "generate-beams")) for name in measured.EXPECTED)


def test_gains_are_those_of_pairs_of_records(tmp_path):
    entry = {"model": "smollm2", "method": "full", "warm_up_seconds": 20.0, "device": "a card"}
    found = write(
        tmp_path,
        entry | {"name": "a-plain", "samples_per_second": 100.0, "peak_memory_bytes": 4000},
        entry | {"name": "a", "samples_per_second": 250.0, "peak_memory_bytes": 1000},
        entry | {"name": "alone", "samples_per_second": 1.0, "peak_memory_bytes": 1000},
    )
    table = measured.gains(found)
    assert len(table) == 1 and tuple(table.iloc[0][["times", "memory"]]) == ("2.5", "25%")
    # 20 s of compiling: n / 100 = 20 + n / 250 at n = 3,333.
    assert table["compiling pays after pairs"].iloc[0] == "3,333"


@pytest.mark.parametrize("name", ["t5-bas-full", "fits-x", "generate-beams"])
def test_a_measurement_that_is_not_known_is_said_before_anything_is_loaded(name, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["growth", name, "--dataset", "nowhere"])
    assert f"There is no measurement '{name}'. There are: t5-base-full-plain, " in capsys.readouterr().err


def test_weights_are_measured_as_recorded():
    found, recorded = benchmark.measure_weights()["bytes"], measured.records()["weights"]["bytes"]
    assert {"zero-shot", "zero-shot-int8-cpu"} <= found.keys()
    assert found == {name: recorded[name] for name in found}


def test_figures_of_growth_have_memory_where_it_was_measured(build):
    rows = growth.measure(build, [growth.Point(question, rank=2 if question == "rank" else None, tokens=48)
                                  for question in growth_report.QUESTIONS], 1, 0)  # fmt: skip
    assert len(growth_report.figure({"device": "CPU", "points": rows}).axes) == 4
    with_memory = [row | {"peak_memory_bytes": 9 * GIB} for row in rows]
    assert len(growth_report.figure({"device": "H100", "points": with_memory}).axes) == 8
    assert list(growth_report.table({"points": with_memory})["peak GiB"]) == ["9.0"] * 4
    assert "failed" in growth_report.table({"points": [*rows, {**rows[0], "failed": "OutOfMemoryError: x"}]})


def test_padding_is_what_is_not_filled():
    assert measured.padding([10, 5, 5, 10], [[0, 1], [2, 3]]) == pytest.approx(0.25)
    assert measured.padding([10, 5, 5, 10], [[0, 3], [1, 2]]) == 0
    lengths = [7 * number % 100 + 1 for number in range(400)]
    grouped = list(GroupedByLength(0, 8, lengths))
    batches = [[order[at : at + 8] for at in range(0, 400, 8)] for order in (grouped, list(range(400)))]
    assert measured.padding(lengths, batches[0]) < measured.padding(lengths, batches[1]) / 2


def test_the_summary_is_that_of_the_committed_records():
    committed = json.loads((measured.FOLDER / "summary.json").read_text("utf-8"))
    assert committed == headlines.summary(), "run python tests/test_documents.py"
    assert committed["t5_full_samples_per_s"] >= committed["t5_full_batch64_samples_per_s"] > 100
    log = pd.read_csv(runs.OUTPUTS / "reference" / "smollm2-dialogsum" / "full" / "seed-0" / "training_log.csv")
    after = log[(log["epoch"] >= 3) & (log["epoch"] < 3.1)]["seconds"]
    assert committed["smollm2_full_3_epochs_seconds_with_compiling"] in list(after)
    assert 3 * 12_460 / committed["smollm2_full_3_epochs_seconds"] == pytest.approx(
        measured.records()["smollm2-full"]["samples_per_second"], rel=1e-3
    )


def test_a_whole_study_is_timed(tiny_models, tiny_data, monkeypatch):
    tiny = tiny_experiment(tiny_models["llama"], tiny_data)
    monkeypatch.setitem(experiments.EXPERIMENTS, "smollm2-dialogsum", tiny)
    monkeypatch.setattr(whole_study, "STUDY_RUNS", ("zero-shot", "lora-efficient"))
    found = whole_study.measure("study", str(tiny_data))
    assert found["epochs"] == 3 and list(found["seconds_each"]) == ["zero-shot", "lora-efficient"]
    assert found["seconds"] >= max(found["seconds_each"].values()) > 0


@pytest.mark.skipif(not (SHARED / "dialogsum").is_dir(), reason="needs shared/dialogsum")
def test_cards_are_planned_for_the_lengths_that_dialogsum_has():
    study = experiments.experiment("smollm2-dialogsum")
    _, family = models.load_family(models.resolve(study.model), study)
    found = memory.lengths_of(encode(data.load_source(str(SHARED / "dialogsum"))["train"], family))
    assert astuple(found) == pytest.approx(astuple(measured.LENGTHS["smollm2"]), abs=1)
