"""What notebook 05 computes in the open: speed-ups, parts of memory, growth and padding."""

import pytest

from dialogue_summarization.callbacks import GroupedByLength
from dialogue_summarization.hardware import GIB
from measurements import cost_curves, tables
from measurements.cost_curves import QUESTIONS, CostPoint

NAME, BALANCED = "05_gpu_optimization", "LoRA r16, q k v o: lora-balanced"


def test_speedups_are_those_of_pairs_of_records(write, cells, tmp_path):
    entry = {"model": "smollm2", "method": "full", "warm_up_seconds": 30.24, "device": "a card"}
    write(
        entry | {"name": "smollm2-full-plain", "samples_per_second": 100.0, "peak_memory_bytes": 4000},
        entry | {"name": "smollm2-full", "samples_per_second": 250.0, "peak_memory_bytes": 1000},
        entry | {"name": "smollm2-lora", "samples_per_second": 1.0, "peak_memory_bytes": 1000},
    )
    table = cells(NAME, "speedups.apply", RECORDS=str(tmp_path))["speedups"]
    assert len(table) == 1 and table.iloc[0][["speed-up", "memory ratio"]].tolist() == [2.5, 0.25]
    # Of the warm-up 80 steps of 32 pairs were training, 10.24 s: compiling took 20 s.
    # n / 100 = 20 + n / 250 at n = 3,333.
    assert table["pays after"].iloc[0] == pytest.approx(3_333, abs=1)


def test_parts_of_memory_are_those_of_the_parameters_and_end_at_the_measured_peak(cells):
    parts = cells(NAME, "figures.memory_bars", RECORDS=str(tables.FOLDER))["parts"]
    t5, adapted = (parts[f"FLAN-T5-Base's shape, {run}"] for run in ("full", BALANCED))
    assert [one["AdamW's moments"] for one in (t5, adapted)] == [8 * 247_577_856, 8 * 3_538_944]
    peaks = {(run["model"], run["method"]): run["train_bytes"] for run in tables.load()["fits-6"]["runs"]}
    assert len(parts) == len(peaks) == 4 and sum(t5.values()) == peaks["t5-base", "full"]


def test_a_gpu_is_a_row_per_run_planned_and_measured(cells):
    rows = cells(NAME, "measured (GB)", GPU_GB=6, RECORDS=str(tables.FOLDER))["rows"]
    assert len(rows) == 4 and rows["SmolLM2-135M, full"]["micro-batch × accumulation"] == "2 × 16"
    assert all(abs(float(row["estimate (GB)"]) - float(row["measured (GB)"])) < 1.2 for row in rows.values())
    assert {row["measured (GB)"] for row in cells(NAME, "measured (GB)", GPU_GB=10)["rows"].values()} == {"–"}


def test_growth_is_drawn_where_it_was_measured(build, cells, write, tmp_path):
    points = [CostPoint(question, rank=2 if question == "rank" else None, tokens=48) for question in QUESTIONS]
    rows = [row | {"peak_memory_bytes": 9 * GIB} for row in cost_curves.measure(points, 1, 0, build)]
    failed = rows[0] | {"failed": "OutOfMemoryError: x"}
    del failed["step_seconds"]
    write({"name": "growth", "device": "NVIDIA H100", "points": [*rows, failed]})
    axes = cells(NAME, "growth, axes", RECORDS=str(tmp_path))["growth"].axes
    assert [ax.lines[0].get_ydata().tolist() for ax in axes[4:]] == [[9.7]] * 4
    assert [len(ax.lines) for ax in axes[:4]] == [2, 2, 1, 1]  # with what the arithmetic alone takes
    assert cells(NAME, "growth, axes", RECORDS=str(tmp_path / "none"))["points"].empty


def test_padding_is_what_is_not_filled(cells, tiny_models):
    names = cells(NAME, "def padding", MODEL=str(tiny_models["llama"]))
    padding, lengths = names["padding"], names["lengths"]
    lengths[:] = [10, 5, 5, 10]
    assert padding([[0, 1], [2, 3]]) == pytest.approx(0.25)
    assert padding([[0, 3], [1, 2]]) == 0
    lengths[:] = [7 * number % 100 + 1 for number in range(400)]
    grouped = list(GroupedByLength(0, 8, lengths))
    batches = [[order[at : at + 8] for at in range(0, 400, 8)] for order in (grouped, list(range(400)))]
    assert padding(batches[0]) < padding(batches[1]) / 2
