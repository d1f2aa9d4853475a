"""Groups, flags, side-by-side texts and result files, on committed records and on records made by hand."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest

from dialogue_summarization import data, experiments, rouge, runs
from dialogue_summarization.evaluation import comparison, results, systems, text_metrics


def dialogues(texts, topics=None):
    return datasets.Dataset.from_dict(
        {
            "id": [f"d_{number}" for number in range(len(texts))],
            "dialogue": texts,
            "summaries": [["Ann sells a <b>red</b> bike.", "Ben & Ann talk."]] * len(texts),
            "topic": topics or [""] * len(texts),
        }
    )


def record(folder, name, texts, test):
    """A run made by hand, with the settings of a committed one."""
    real = runs.read(runs.OUTPUTS / "reference" / "quickstart" / name / "seed-0")
    table = pd.DataFrame({"id": test["id"], "prediction": texts})
    scores = rouge.score_dialogues(texts, test["summaries"]).set_index(pd.Index(test["id"], name="id"))
    return runs.Run(folder, real.config, real.environment, real.metrics, table, scores, real.log)


@pytest.fixture(scope="module")
def quickstart():
    return runs.collect("quickstart", "nowhere"), data.load(experiments.experiment("quickstart"))["test"]


def test_lengths_fall_into_quarters():
    test = dialogues([" ".join(["word"] * number) for number in range(1, 101)])
    counts = comparison.groups(test, "length").value_counts(sort=False)
    assert (
        counts.tolist() == [26, 24, 25, 25]
        and counts.index[0] == "1 to 26 words"
        and counts.index[-1] == "76 to 100 words"
    )


def test_turns_that_do_not_differ_are_one_group():
    assert comparison.groups(dialogues(["a\nb", "c\nd"]), "turns").tolist() == ["2 to 2 turns"] * 2


def test_rare_topics_are_one_group():
    test = dialogues(["x"] * 23, ["work"] * 12 + ["sport"] * 10 + ["chess"])
    counts = comparison.groups(test, "topic").value_counts().to_dict()
    assert counts == {"work": 12, "sport": 10, "other topics": 1}


def test_each_dialogue_is_in_one_group(quickstart):
    made, test = quickstart
    ours = systems.of_runs(made, test)
    for by in ("length", "turns", "topic"):
        table = comparison.by_group(ours, test, by)
        assert table["dialogues"].sum() == len(test) == 48
        means = [float(cell.split()[0]) for cell in table[ours[1].name]]
        assert np.average(means, weights=table["dialogues"].astype(int)) == pytest.approx(
            ours[1].score("rougeL"), abs=1e-3
        )


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


def test_texts_side_by_side_are_escaped_and_ordered(tmp_path):
    test = dialogues(["#A#: <script>\n#B#: a & b", "#A#: x", "#A#: y"])
    one = record(tmp_path, "lora-balanced", ["Ben & Ann talk.", "<i>", "Ann sells a red bike."], test)
    other = record(tmp_path, "full", ["nothing", "Ben & Ann talk.", "Ann sells a red bike."], test)
    markup = comparison.biggest_differences(one, other, test)._repr_html_()
    assert "<script>" not in markup and "#A#: &lt;script&gt;<br>#B#: a &amp; b" in markup and "&lt;i&gt;" in markup
    assert markup.index("wins by") < markup.index("loses by") and "d_2" not in markup  # a tie is no win
    assert markup.count("<tr") == 3 and ">references</th>" in markup


def test_failures_are_counted(quickstart):
    made, test = quickstart
    table = text_metrics.failures(made, test)
    assert (
        list(table.columns) == ["empty", "cut off", "repeats", "copies", "any", "of"]
        and table["of"].tolist() == [48] * 3
    )
    assert table.loc["zero-shot (reference)"].tolist() == [0, 3, 0, 35, 37, 48]


def test_result_files_hold_what_the_records_hold(quickstart, tmp_path):
    made, test = quickstart
    results.write(made, test, tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["run"].tolist() == list(experiments.EXPERIMENTS["quickstart"].runs)
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
