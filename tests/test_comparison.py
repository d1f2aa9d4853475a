"""Systems and the tables that compare them: humans and published systems as published, verdicts that tests allow."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, tiny_experiment, tiny_rows

from dialogue_summarization import comparison, data, experiments, published, rouge, runs, significance, systems

needs_dialogsum = pytest.mark.skipif(not (SHARED / "dialogsum").is_dir(), reason="needs shared/dialogsum")
needs_published = pytest.mark.skipif(not (SHARED / "published").is_dir(), reason="needs shared/published")
DIALOGUE = "#A#: One.\n#B#: A long second turn.\n#A#: Three, no more."


@pytest.fixture(scope="module")
def dialogsum():
    return data.load_source(str(SHARED / "dialogsum"))["test"]


@pytest.fixture(scope="module")
def quickstart():
    test = data.load(experiments.experiment("quickstart"))["test"]
    return comparison.everyone(runs.collect("quickstart", "nowhere"), test), test


def test_baselines_copy_turns():
    assert systems.lead(DIALOGUE, 1) == "#A#: One."
    assert systems.lead(DIALOGUE, 9) == DIALOGUE.replace("\n", " ")
    assert systems.longest(DIALOGUE) == "#B#: A long second turn."
    drawn = systems.random_turns(DIALOGUE)
    assert drawn == systems.random_turns(DIALOGUE) and drawn in {
        "#A#: One. #B#: A long second turn.", "#A#: One. #A#: Three, no more.",
        "#B#: A long second turn. #A#: Three, no more.",
    }  # fmt: skip
    assert systems.random_turns("#A#: One.") == "#A#: One."


def test_leave_one_out_best_by_hand():
    """Of 0.2, 0.5, 0.9 the best without the first is 0.9, without the second 0.9, without the third 0.5."""
    index = pd.MultiIndex.from_tuples([(0, 0), (0, 1), (0, 2), (1, 0)], names=["dialogue", "reference"])
    table = pd.DataFrame({name: [0.2, 0.9, 0.5, 0.7] for name in rouge.TYPES}, index=index)
    found = rouge.leave_one_out_best(table)
    assert found.index.tolist() == [0]  # one reference cannot be left out
    assert found["rouge1"].tolist() == pytest.approx([(0.9 + 0.9 + 0.5) / 3])


@needs_dialogsum
def test_the_human_line_is_as_published(dialogsum):
    line = systems.human_line(dialogsum)
    assert line.mean.mean(axis=(0, 1))[:3] == pytest.approx([0.534, 0.267, 0.450], abs=5e-4)
    assert line.best_of_others.mean(axis=(0, 1))[:3] == pytest.approx([0.5961, 0.3411, 0.5184], abs=5e-5)
    # The same from all pairs in both directions, by rouge_score's symmetry of F1.
    several = list(dialogsum["summaries"])
    both = [
        rouge.score_all([r[a] for r in several], [[r[b]] for r in several]).mean() for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert line.score("rouge1") == pytest.approx(np.mean([table["rouge1"] for table in both]), abs=1e-9)


@needs_dialogsum
@needs_published
def test_the_recorded_table_is_what_the_predictions_score(dialogsum):
    pd.testing.assert_frame_equal(published.recorded(), published.table(dialogsum), check_exact=False, atol=2e-6)
    assert len(published.recorded()) == 7


@needs_dialogsum
@needs_published
def test_best_of_three_references_is_as_published(dialogsum):
    entries = {entry.name: entry for entry in published.SYSTEMS}
    for name, expected in {
        "BART-large, fine-tuned": [0.5585, 0.3139, 0.4786],
        "GPT-4o, zero-shot": [0.4226, 0.1693, 0.3551],
    }.items():
        one = published.score(entries[name], dialogsum, SHARED / "published")
        assert one.best.mean(axis=(0, 1))[:3] == pytest.approx(expected, abs=5e-5)
        assert (one.best_of_others <= one.best + 1e-12).all() and (one.best_of_others >= one.mean - 1e-12).all()


@needs_dialogsum
def test_without_predictions_the_recorded_scores_are_rows(dialogsum):
    several = [one for one in comparison.everyone([], dialogsum, "nowhere")]
    assert {one.kind for one in several} == {"human", "baseline"}
    table = comparison.standings(several, dialogsum)
    assert table.loc["BART-large, fine-tuned (recorded)", "ROUGE-1"].startswith("0.475 [")
    assert table.iloc[0]["way to humans"] == "100%" and list(table["what"][:2]) == ["human", "published"]
    assert table["way to humans"].str.endswith("%").all() and "0%" in table["way to humans"].tolist()


def test_other_dialogues_have_no_published_rows(quickstart):
    several, test = quickstart
    assert published.load(test) == [] and not published.is_theirs(test)
    assert {"human", "run", "baseline"} == {one.kind for one in several}
    table = comparison.standings(several, test)
    assert len(table) == 11 and list(dict.fromkeys(table["what"])) == ["human", "run", "baseline"]


def fake(name, scores, kind="run"):
    """A system with the same score in every measure; `scores` are (seeds, dialogues)."""
    values = np.repeat(np.atleast_2d(scores)[:, :, None], 4, axis=2)
    return systems.System(name, kind, values, values, None, pd.DataFrame(), ())


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
        (0.0, 0.15, "not distinguishable"),
        (0.004, 0.01, "differ, by less than the margin"),
    ],
)
def test_verdicts(noisy, shift, spread, expected):
    pair = [noisy("one", shift, spread), noisy("other", 0, spread)]
    assert comparison.pairwise(pair, "rougeL")["verdict"].tolist() == [expected]
    [sentence] = comparison.sentences(pair, "rougeL")
    assert f": {expected} (these two alone, one seed each)." in sentence
    assert (" beats " in sentence) == expected.startswith("differ")
    assert re.search(r"by 0\.\d{3} ROUGE-L, interval −?0\.\d{3} to 0\.\d{3}, p ", sentence)


def test_seeds_are_named_and_a_system_alone_has_no_pairs(noisy):
    pair = [noisy("one", 0.05, 0.02, seeds=3), noisy("other", 0, 0.02, seeds=3)]
    assert comparison.sentences(pair, "rouge1")[0].endswith("(over 3 and 3 seeds).")
    each = sorted(seed.mean() for seed in pair[0].scores("rougeL"))
    assert comparison.scores(pair)["seeds"]["one"] == f"3: {each[0]:.3f} to {each[2]:.3f}"
    assert comparison.sentences(pair[:1], "rouge1") == [] and comparison.pairwise(pair[:1], "rouge1").empty
    assert "nothing to compare" in comparison.resolution(pair[:1], "rouge1")


@pytest.mark.parametrize(("spread", "found"), [(0.02, "is as good as"), (0.3, "is not shown to be as good as")])
def test_the_planned_comparison_is_one_test(noisy, spread, found):
    pair = [noisy("full", 0, spread, seeds=3), noisy("lora-balanced (reference)", 0.001, spread, seeds=2)]
    said = comparison.planned([*pair, noisy("other", 0, 0.1)])
    gap = significance.compare(pair[1].scores("rouge1"), pair[0].scores("rouge1"))
    assert said.startswith(f"lora-balanced (reference) {found} full within 0.01 ROUGE-1: difference ")
    assert f" p {gap.p_equivalent:.3f} " in said.replace("<0.001", f"{gap.p_equivalent:.3f}")
    assert said.endswith("(seeds: 2 and 3).") and comparison.planned(pair[:1]) == ""


def test_identical_systems_are_as_good_as_each_other(noisy):
    one = noisy("one", 0, 0.1)
    table = comparison.pairwise([one, replace(one, name="copy")], "rougeL")
    assert table["p"].tolist() == ["1.000"] and table["verdict"].tolist() == ["as good as each other"]


def test_p_values_are_corrected_over_all_pairs(noisy):
    several = [noisy(f"s{n}", 0.002 * n, 0.1) for n in range(4)]
    found = comparison.differences(several, "rougeL")
    assert len(found) == 6
    assert all(corrected >= gap.p for _, _, gap, corrected, _ in found)
    assert min(corrected for *_, corrected, _ in found) == pytest.approx(
        min(6 * min(gap.p for _, _, gap, _, _ in found), 1)
    )


def test_each_reference_is_a_column_with_ranks(quickstart):
    several, _ = quickstart
    table = comparison.references(several, "rougeL")
    assert list(table.columns) == ["mean", "best", "best of all but one", "1", "2", "3"]
    ranks = [
        int(re.search(r"\((\d)\)", cell)[1]) for cell in table.loc[[s.name for s in several if s.kind == "run"], "1"]
    ]
    assert sorted(ranks) == [1, 2, 3, 4, 5]


def test_runs_of_one_method_are_one_system(tiny_models, tiny_data, tmp_path):
    from dialogue_summarization import study

    tiny = tiny_experiment(tiny_models["llama"], tiny_data)
    made = [study.run(tiny, experiments.method("lora-efficient"), seed, outputs=tmp_path) for seed in (0, 1)]
    test = data.load(tiny)["test"]
    [one] = systems.of_runs(made, test)
    assert one.name == "lora-efficient" and one.mean.shape == (2, 5, 4)
    expected = np.mean([run.metrics["rougeL"] for run in made])
    assert one.score("rougeL") == pytest.approx(expected, abs=1e-6)
    assert len(tiny_rows(1)) == 1
