"""Groups, flags, side-by-side texts, costs and result files, on records made by hand."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest

from dialogue_summarization import breakdown, costs, data, energy, experiments, results, runs, systems


def dialogues(texts, topics=None):
    return datasets.Dataset.from_dict(
        {
            "id": [f"d_{number}" for number in range(len(texts))],
            "dialogue": texts,
            "summaries": [["Ann sells a <b>red</b> bike.", "Ben & Ann talk."]] * len(texts),
            "topic": topics or [""] * len(texts),
        }
    )


def record(folder, name, texts, **metrics):
    """A run made by hand, with the settings of a committed one."""
    real = runs.read(runs.OUTPUTS / "reference" / "quickstart" / name / "seed-0")
    table = pd.DataFrame({"id": [f"d_{number}" for number in range(len(texts))], "prediction": texts})
    return runs.Run(folder, real.config, real.environment, {**real.metrics, **metrics}, table, real.log)


@pytest.fixture(scope="module")
def quickstart():
    return runs.collect("quickstart", "nowhere"), data.load(experiments.experiment("quickstart"))["test"]


def test_lengths_fall_into_quarters():
    test = dialogues([" ".join(["word"] * number) for number in range(1, 101)])
    counts = breakdown.groups(test, "length").value_counts(sort=False)
    assert (
        counts.tolist() == [26, 24, 25, 25]
        and counts.index[0] == "1 to 26 words"
        and counts.index[-1] == "76 to 100 words"
    )


def test_turns_that_do_not_differ_are_one_group():
    assert breakdown.groups(dialogues(["a\nb", "c\nd"]), "turns").tolist() == ["2", "2"]


def test_rare_topics_are_one_group():
    test = dialogues(["x"] * 23, ["work"] * 12 + ["sport"] * 10 + ["chess"])
    counts = breakdown.groups(test, "topic").value_counts().to_dict()
    assert counts == {"work": 12, "sport": 10, "other topics": 1}


def test_each_dialogue_is_in_one_group(quickstart):
    made, test = quickstart
    ours = systems.of_runs(made, test)
    for by in ("length", "turns", "topic"):
        table = breakdown.breakdown(ours, test, by)
        assert table["dialogues"].sum() == len(test) == 16
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
    assert breakdown.flags(summary, "#A#: one two three four five six seven eight nine ten.") == expected


def test_texts_side_by_side_are_escaped_and_ordered(tmp_path):
    test = dialogues(["#A#: <script>\n#B#: a & b", "#A#: x", "#A#: y"])
    one = record(tmp_path, "lora-balanced", ["Ben & Ann talk.", "<i>", "Ann sells a red bike."])
    other = record(tmp_path, "full", ["nothing", "Ben & Ann talk.", "Ann sells a red bike."])
    markup = breakdown.largest_gaps(one, other, test)._repr_html_()
    assert "<script>" not in markup and "#A#: &lt;script&gt;<br>#B#: a &amp; b" in markup and "&lt;i&gt;" in markup
    assert markup.index("wins by") < markup.index("loses by") and "d_2" not in markup  # a tie is no win
    assert markup.count("<tr>") == 3 and ">references</th>" in markup


def test_examples_are_best_median_and_worst(quickstart):
    made, test = quickstart
    markup = breakdown.examples(made, test, made[1]).markup
    assert markup.count("<tr>") == 3 + len(made) and all(
        f"<b>{rule}</b>" in markup for rule in ("best", "median", "worst")
    )


def test_costs_by_hand(tmp_path):
    full = record(tmp_path, "full", ["a"], train_seconds=1800, generate_seconds=1800, train_joules=2700,
                  generate_joules=900, rougeL=0.3)  # fmt: skip
    lora = record(tmp_path, "lora-balanced", ["a"], train_seconds=900, adapter_bytes=5_000_000,
                  generate_joules=900, rougeL=0.29)  # fmt: skip
    found = costs.measures(full, price_an_hour=2.5)
    assert (found["price"], found["energy_wh"], found["share"]) == (2.5, 1.0, 100.0)
    assert found["ship_mb"] == pytest.approx(134_515_008 * 4 / 1e6) and costs.shipped(lora) == 5_000_000
    table = costs.table([full, lora])
    assert "price" not in table and table["energy Wh"].tolist() == ["1.0", "–"]
    sentence = costs.in_a_sentence([full, lora])
    assert "5.0 MB instead of 538 MB" in sentence and "training time was 50%" in sentence
    assert "ROUGE-L changed by -0.010" in sentence
    assert "needed" in costs.in_a_sentence([full])


def test_energy_without_a_counter_is_unknown(monkeypatch):
    monkeypatch.setattr(energy, "_counter", lambda: None)
    with energy.Energy() as found:
        pass
    assert found.joules is None
    readings = iter([1_000, 251_000])
    monkeypatch.setattr(energy, "_counter", lambda: next(readings))
    with energy.Energy() as found:
        pass
    assert found.joules == 250.0


def test_result_files_hold_what_the_records_hold(quickstart, tmp_path):
    made, test = quickstart
    results.write(made, test, tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["run"].tolist() == list(experiments.STUDY_RUNS)
    for number, run in enumerate(made):
        assert table["rougeL"][number] == pytest.approx(run.metrics["rougeL"], abs=1e-6)
        assert table["key"][number] == run.config.key and table["data_hash"][number] == run.config.data_fingerprint
    assert (table["rougeL_low"] < table["rougeL"]).all() and (table["rougeL"] < table["rougeL_high"]).all()
    text = (tmp_path / "results.md").read_text("utf-8")
    for said in (
        "rouge_score:0.1.2|stem:yes|refs:mean3|lsum:sentences|n:16|bs:10000|seed:0",
        "b179c9523d0e6a0f",
        "lead-3",
    ):
        assert said in text
    assert json.dumps(made[0].config.key)[1:-1] in text
