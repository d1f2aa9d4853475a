"""What runs cost, on records whose figures are set by hand."""

from dataclasses import replace

import pytest

from dialogue_summarization import runs
from dialogue_summarization.evaluation import costs


def record(name, **metrics):
    committed = runs.read(runs.OUTPUTS / "reference" / "quickstart" / name / "seed-0")
    return replace(committed, metrics={"parameters": 134_515_008, "trainable_parameters": 134_515_008} | metrics)


def test_costs_by_hand():
    full = record(
        "full", train_seconds=1800, generate_seconds=1800, train_joules=2700, generate_joules=900,
        peak_memory_bytes=3 << 29,
    )  # fmt: skip
    lora = record(
        "lora-balanced", train_seconds=900, adapter_bytes=5_000_000, generate_joules=900,
        trainable_parameters=1_345_150,
    )  # fmt: skip
    measures = costs.cost_measures(full, price_per_hour=2.5)
    assert (measures["price"], measures["energy_wh"], measures["trained"]) == (2.5, 1.0, 100.0)
    assert measures["peak_gb"] == pytest.approx(1.610612736)
    assert measures["ship_mb"] == pytest.approx(134_515_008 * 4 / 1e6)
    assert costs.cost_measures(lora)["ship_mb"] == 5 and "energy_wh" not in costs.cost_measures(lora)
    assert costs.cost_measures(record("zero-shot"))["ship_mb"] == 0
    table = costs.costs([full, lora])
    assert "price" not in table and table["energy (Wh)"].tolist() == ["1.0", "–"]
    assert table["trainable parameters (%)"].tolist() == ["100.00", "1.00"] and table["saved file (MB)"].tolist() == [
        "538.1",
        "5.0",
    ]
    assert costs.costs([full, lora], price_per_hour=4.0)["price"].tolist() == ["4.0000", "1.0000"]
