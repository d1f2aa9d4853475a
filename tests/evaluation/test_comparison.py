"""Systems and the tables that compare them: humans as published, verdicts that tests allow."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import SHARED, tiny_experiment

from dialogue_summarization import data, disk, errors, experiments, rouge, runs, study
from dialogue_summarization.evaluation import comparison, statistics, systems

needs_dialogsum = pytest.mark.skipif(not (SHARED / "dialogsum").is_dir(), reason="needs shared/dialogsum")
DIALOGUE = "#A#: One.\n#B#: A long second turn.\n#A#: Three, no more."


@pytest.fixture(scope="module")
def dialogsum(sources):
    return sources(str(SHARED / "dialogsum"))["test"]


@pytest.fixture(scope="module")
def quickstart():
    test = data.load(experiments.experiment("quickstart"))["test"]
    return comparison.all_systems(runs.collect("quickstart", "nowhere"), test), test


def test_baselines_copy_turns():
    copies = systems.copied_turns(DIALOGUE)
    assert copies["lead-1"] == "#A#: One." and copies["lead-2"] == "#A#: One. #B#: A long second turn."
    assert copies["lead-3"] == DIALOGUE.replace("\n", " ")
    assert copies["longest turn"] == "#B#: A long second turn."
    assert copies == systems.copied_turns(DIALOGUE) and copies["2 random turns"] in {
        "#A#: One. #B#: A long second turn.", "#A#: One. #A#: Three, no more.",
        "#B#: A long second turn. #A#: Three, no more.",
    }  # fmt: skip
    assert set(systems.copied_turns("#A#: One.").values()) == {"#A#: One."}


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028", "\x85", "\x0b"])
def test_turns_are_counted_and_copied_alike_whatever_the_line_ends(end):
    rows = [{"id": n, "dialogue": DIALOGUE.replace("\n", end) + f"{end}x" * n, "summary": "x"} for n in range(4)]
    test = data.group_references(rows, "rows")
    assert [len(dialogue.split("\n")) for dialogue in test["dialogue"]] == [3, 4, 5, 6]
    [lead] = [one for one in systems.baselines(test) if one.name == "lead-2"]
    assert (
        lead.texts[0][0] == systems.copied_turns(rows[0]["dialogue"])["lead-2"] == "#A#: One. #B#: A long second turn."
    )


def test_what_the_form_alone_scores_is_seen_in_any_script():
    references = (("他们去北京",), ("他们去上海",))
    assert systems.form_only(("他们去北京", "他们去上海"), references) == pytest.approx(3 / 5)
    train = data.group_references(
        [{"id": n, "dialogue": f"{n}", "summary": s} for n, s in enumerate(["甲乙", "甲丙", "丁"])], "r"
    )
    assert systems.best_sentence(train) in ("甲乙", "甲丙")


def test_leave_one_out_best_by_hand():
    """Of 0.2, 0.5, 0.9 the best without the first is 0.9, without the second 0.9, without the third 0.5."""
    index = pd.MultiIndex.from_tuples([(0, 0), (0, 1), (0, 2), (1, 0)], names=["dialogue", "reference"])
    table = pd.DataFrame({name: [0.2, 0.9, 0.5, 0.7] for name in rouge.TYPES}, index=index)
    found = systems.leave_one_out_best(table)
    assert found.loc[0, "rouge1"] == pytest.approx((0.9 + 0.9 + 0.5) / 3)
    assert found.loc[1].isna().all()  # one reference cannot be left out


@needs_dialogsum
def test_the_human_baseline_is_as_published(dialogsum):
    [line] = systems.human_baseline(dialogsum)
    assert line.f1.mean(axis=(0, 1))[:3] == pytest.approx([0.534, 0.267, 0.450], abs=5e-4)
    assert line.best_of_others.mean(axis=(0, 1))[:3] == pytest.approx([0.5961, 0.3411, 0.5184], abs=5e-5)
    # The same from all pairs in both directions, by rouge_score's symmetry of F1.
    several = list(dialogsum["summaries"])
    both = [
        rouge.score_dialogues([r[a] for r in several], [[r[b]] for r in several]).mean()
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert line.score("rouge1") == pytest.approx(np.mean([table["rouge1"] for table in both]), abs=1e-9)


@needs_dialogsum
def test_without_predictions_the_recorded_scores_are_rows(dialogsum):
    several = comparison.all_systems([], dialogsum, "nowhere")
    assert {one.kind for one in several} == {"reference", "baseline"}
    table = comparison.leaderboard(several, dialogsum)
    assert table.loc["BART-large, fine-tuned", "ROUGE-1"].startswith("0.475 [")
    share = table["gap closed"]
    assert share.iloc[0] == "100%" and list(table["kind"][:2]) == ["reference", "published"]
    assert share.str.endswith("%").all() and "0%" in share.tolist()


@needs_dialogsum
def test_a_published_file_of_other_dialogues_is_an_error(dialogsum, tmp_path):
    (tmp_path / "gpt_4_dialogsum_predictions.csv").write_text("id,prediction\ntest_0,Boss bans.\n", encoding="utf-8")
    with pytest.raises(errors.DataError, match=r"missing: 499 ids \(test_1, "):
        systems.published(dialogsum, tmp_path)


def test_other_dialogues_have_no_published_rows(quickstart):
    several, test = quickstart
    assert systems.published(test, SHARED / "published") == [] and systems.published_scores(test).empty
    assert {"reference", "run", "baseline"} == {one.kind for one in several}
    table = comparison.leaderboard(several, test)
    assert len(table) == 9 and list(dict.fromkeys(table["kind"])) == ["reference", "run", "baseline"]


def fake(name, scores, kind="run"):
    """A system with the same score in every measure; `scores` are (seeds, dialogues)."""
    values = np.repeat(np.atleast_2d(scores)[:, :, None], 4, axis=2)
    return systems.System(name, kind, values)


@pytest.fixture
def noisy():
    generator = np.random.default_rng(0)
    base = generator.beta(2, 3, 400)

    def make(name, shift, spread, seeds=1):
        return fake(name, base + shift + generator.normal(0, spread, (seeds, 400)))

    return make


@pytest.mark.parametrize(
    ("shift", "spread", "expected"),
    [
        (0.05, 0.05, "differ"),
        (0.0, 0.02, "as good as each other"),
        (0.0, 0.15, "no significant difference"),
        (0.004, 0.01, "differ, by less than the margin"),
    ],
)
def test_verdicts(noisy, shift, spread, expected):
    pair = [noisy("one", shift, spread), noisy("other", 0, spread)]
    table = comparison.pairwise(pair, "rougeL")
    assert table["verdict"].tolist() == [expected] and table["seeds"].tolist() == ["1, 1"]
    assert (table["p (Holm)"].replace("<0.001", "0").astype(float) < 0.05).tolist() == [expected.startswith("differ")]
    assert re.fullmatch(r"\+0\.\d{3} \[[+-]0\.\d{3}, \+0\.\d{3}\]", table["ROUGE-L difference"].iloc[0])


def test_seeds_are_named_and_a_system_alone_has_no_pairs(noisy):
    pair = [noisy("one", 0.05, 0.02, seeds=3), noisy("other", 0, 0.02, seeds=3)]
    assert comparison.pairwise(pair, "rouge1")["seeds"].tolist() == ["3, 3"]
    each = sorted(seed.mean() for seed in pair[0].scores("rougeL"))
    assert comparison.leaderboard(pair)["seeds"]["one"] == f"3: {each[0]:.3f} to {each[2]:.3f}"
    assert comparison.pairwise(pair[:1], "rouge1").empty


def test_the_smallest_detectable_difference_is_a_column(noisy):
    pair = [noisy("one", 0.05, 0.05), noisy("other", 0, 0.05)]
    gap = statistics.compare(pair[0].scores("rougeL"), pair[1].scores("rougeL"))
    assert comparison.pairwise(pair, "rougeL")["smallest detectable difference"].tolist() == [
        f"{gap.minimum_detectable:.3f}"
    ]


@pytest.mark.parametrize(("spread", "found"), [(0.02, "as good as each other"), (0.3, "no significant difference")])
def test_the_planned_comparison_is_one_test(noisy, spread, found):
    pair = [
        noisy("full", 0, spread, seeds=3),
        noisy("LoRA r16, q k v o: lora-balanced (reference)", 0.001, spread, seeds=2),
    ]
    table = comparison.planned_comparison([*pair, noisy("other", 0, 0.1)])
    gap = statistics.compare(pair[1].scores("rouge1"), pair[0].scores("rouge1"))
    [(name, row)] = table.iterrows()
    assert (
        set(name.split(" − ")) == {"LoRA r16, q k v o: lora-balanced (reference)", "full"} and row["verdict"] == found
    )
    p = f"{gap.p_equivalent:.3f}"
    assert row["p, equivalence test"].replace("<0.001", p) == p and row["p"] == row["p (Holm)"]
    assert f"{abs(gap.mean):+.3f} [" in row["ROUGE-1 difference"]
    assert sorted(row["seeds"].split(", ")) == ["2", "3"] and comparison.planned_comparison(pair[:1]).empty


def test_identical_systems_are_as_good_as_each_other(noisy):
    one = noisy("one", 0, 0.1)
    table = comparison.pairwise([one, replace(one, name="copy")], "rougeL")
    assert table["p"].tolist() == ["1.000"] and table["verdict"].tolist() == ["as good as each other"]


@pytest.mark.parametrize(
    ("count", "summaries", "verdict"),
    [
        (1, ("a", "b"), "too few to say"),
        (5, ("a", "a"), "too few to say"),
        (48, ("a", "b"), "too few to say"),
        (48, ("a", "a"), "as good as each other"),
        (500, ("a", "b"), "as good as each other"),
    ],
)
def test_scores_without_spread_are_no_verdict(count, summaries, verdict):
    pair = [
        replace(fake(name, np.zeros(count)), texts=((text,) * count,))
        for name, text in zip(("one", "other"), summaries, strict=True)
    ]
    table = comparison.pairwise(pair, "rougeL")
    assert table["verdict"].tolist() == [verdict] and table["smallest detectable difference"].tolist() == ["–"]
    assert ("0.000 [–]" in comparison.leaderboard(pair).to_string()) == (count == 1)


def test_files_have_null_for_what_nobody_knows_and_tables_a_dash(tmp_path):
    one = fake("one", [0.25])
    disk.write_json(tmp_path / "one.json", {"scores": one.columns(), "more": [math.inf, {"x": -math.inf}], "n": 1})
    read = json.loads((tmp_path / "one.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert read["scores"] == one.columns() | {f"{name}_{end}": None for name in rouge.TYPES for end in ("low", "high")}
    assert (read["more"], read["n"]) == ([None, {"x": None}], 1)
    assert systems.from_columns(read["scores"], "rouge2") == "0.250 [–]"


def test_p_values_are_corrected_over_all_pairs(noisy):
    several = [noisy(f"s{n}", 0.002 * n, 0.1) for n in range(4)]
    table = comparison.pairwise(several, "rougeL")
    p, corrected = (table[name].replace("<0.001", "0").astype(float) for name in ("p", "p (Holm)"))
    assert len(table) == 6 and (corrected >= p).all()
    assert corrected.min() == pytest.approx(min(6 * p.min(), 1), abs=6 * 5e-4)


def test_the_figure_shows_every_system_and_grey_dots_for_committed_runs(quickstart):
    several, _ = quickstart
    made = [one.runs[0] for one in several if one.kind == "run"]
    [ax] = comparison.standings(several, committed=made).axes
    assert {label.get_text() for label in ax.get_yticklabels()} == {f"{one.name} [{one.kind}]" for one in several}
    dots = [line.get_xdata().tolist() for line in ax.lines if line.get_color() == "#b0b0b0" and len(line.get_xdata())]
    assert sorted(dots) == sorted([[run.metrics["rougeL"]] for run in made])


def test_runs_of_one_method_are_one_system(tiny_models, tiny_data, tmp_path):
    tiny = tiny_experiment(tiny_models["llama"], tiny_data)
    made = [study.run(tiny, experiments.method("lora-efficient"), seed, outputs=tmp_path) for seed in (0, 1)]
    test = data.load(tiny)["test"]
    [one] = systems.of_runs(made, test)
    assert one.name == "LoRA r8, q v: lora-efficient" and one.f1.shape == (2, 5, 4)
    expected = np.mean([run.metrics["rougeL"] for run in made])
    assert one.score("rougeL") == pytest.approx(expected, abs=1e-6)
