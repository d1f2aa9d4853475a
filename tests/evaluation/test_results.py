"""Flags by hand, and result files of the committed records."""

import json

import pandas as pd
import pytest

from dialogue_summarization import data, experiments, runs
from dialogue_summarization.evaluation import results, text_metrics


@pytest.fixture(scope="module")
def quickstart():
    return runs.collect("quickstart", "nowhere"), data.load(experiments.experiment("quickstart"))["test"]


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (" ", {"empty"}),
        ("Ann sells her bike to Ben.", set()),
        ('Ben says: "Fine!"', set()),
        ("Ann sells her bike to", {"cut off"}),
        ("They talk and talk a lot. They talk and talk. They talk and go.", {"repeats"}),
        ("one two three four five six seven eight nine.", {"copies"}),
    ],
)
def test_flags(summary, expected):
    flags = text_metrics.failure_flags(summary, "#A#: one two three four five six seven eight nine ten.")
    assert {name for name, is_set in flags.items() if is_set} == expected


def test_flags_are_counted_on_the_records(quickstart):
    made, test = quickstart
    flags = pd.DataFrame(map(text_metrics.failure_flags, made[0].predictions["prediction"], test["dialogue"]))
    assert flags.sum().to_dict() == {"empty": 0, "cut off": 3, "repeats": 0, "copies": 35} and len(flags) == 48


def test_result_files_hold_what_the_records_hold(quickstart, tmp_path):
    made, test = quickstart
    results.write(made, test, tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    first, *trained = experiments.EXPERIMENTS["quickstart"].runs
    assert table["run"].tolist() == [first, *(name for name in trained for _ in range(3))]  # three seeds each
    for number, run in enumerate(made):
        assert table["rougeL"][number] == pytest.approx(run.metrics["rougeL"], abs=1e-6)
        assert table["key"][number] == run.config.key and table["data_hash"][number] == run.config.data_fingerprint
    assert (table["rougeL_low"] < table["rougeL"]).all() and (table["rougeL"] < table["rougeL_high"]).all()
    text = (tmp_path / "results.md").read_text("utf-8")
    for said in (
        "rouge_score:0.1.2|stem:yes|refs:mean3|lsum:sentences|n:48|bs:10000|seed:0",
        "b179c9523d0e6a0f",
        "lead-3",
    ):
        assert said in text
    assert json.dumps(made[0].config.key)[1:-1] in text
