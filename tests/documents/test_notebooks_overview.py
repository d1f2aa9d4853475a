"""The notebooks' overview: times and memory are those of the records, and what small cards hold is what is planned."""

import json
import re

import pytest

from dialogue_summarization import data, experiments, runs
from dialogue_summarization.acceleration import memory
from dialogue_summarization.hardware import GIB
from measurements.tables import LENGTHS, model_dims

OVERVIEW = (data.ROOT / "notebooks" / "README.md").read_text("utf-8")


def table(name):
    """The cells of a table of the overview, a list per row."""
    block = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", OVERVIEW, re.DOTALL)[1]
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")]
    return rows[2:]


@pytest.mark.parametrize("name", ["quickstart", "smollm2-dialogsum"])
def test_times_and_memory_are_those_of_the_records(name):
    expected = []
    for run in experiments.EXPERIMENTS[name].runs:
        folder = runs.OUTPUTS / "reference" / name / run / "seed-0"
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        trained = "train_seconds" in metrics
        expected.append(
            [
                f"`{run}`",
                f"{metrics['train_seconds']:.0f}" if trained else "–",
                f"{metrics['generate_seconds']:.0f}",
                f"{metrics['peak_memory_bytes'] / 1e9:.1f}" if trained else "–",
                f"{metrics['generate_memory_bytes'] / 1e9:.1f}",
            ]
        )
        device = json.loads((folder / "environment.json").read_text("utf-8"))["device"]
        assert device in OVERVIEW
    assert [row[1:] for row in table(name)] == expected


def test_what_small_cards_hold_is_what_is_planned():
    expected = []
    for run in experiments.STUDY_RUNS[1:]:
        dims = model_dims("smollm2", run)
        plans = [memory.plan_batch(gib * GIB, 32, dims, LENGTHS["smollm2"]) for gib in (6, 16)]
        held = [f"{plan.micro_batch} × {plan.accumulation}, {plan.bytes / 1e9:.1f} GB" for plan in plans]
        expected.append([f"`{run}`", *held])
    assert table("small cards") == expected
