"""Published predictions score as published, wherever they are scored; in one file, as each is scored once."""

import json

import pandas as pd
import pytest
from helpers import SHARED

from dialogue_summarization.commands import cli
from dialogue_summarization.evaluation import comparison, systems
from dialogue_summarization.evaluation.statistics import compare
from dialogue_summarization.intervals import interval
from dialogue_summarization.rouge import score_dialogues

PUBLISHED = SHARED / "published"
pytestmark = pytest.mark.skipif(
    not (PUBLISHED.is_dir() and (SHARED / "dialogsum").is_dir()), reason="needs shared/dialogsum and shared/published"
)


@pytest.fixture(scope="module")
def dialogsum(sources):
    return sources(str(SHARED / "dialogsum"))["test"]


@pytest.fixture(scope="module")
def references(dialogsum):
    """Of DialogSum's test dialogues, three each."""
    return dialogsum["summaries"]


@pytest.fixture(scope="module")
def published(dialogsum):
    return systems.published(dialogsum, PUBLISHED)


def test_the_recorded_table_is_what_the_predictions_score(dialogsum, published):
    recorded = systems.published_scores(dialogsum)
    scored = {one.name: one.columns() for one in published}
    found = pd.DataFrame.from_dict(scored, orient="index").rename_axis("system")
    pd.testing.assert_frame_equal(recorded[list(found)], found, check_exact=False, atol=2e-6)
    assert len(recorded) == 9 and {one.kind for one in published} == {"published"}


def test_best_of_three_references_is_as_published(published):
    named = {one.name: one for one in published}
    for name, expected in {
        "BART-large, fine-tuned": [0.5585, 0.3139, 0.4786],
        "GPT-4o, zero-shot": [0.4226, 0.1693, 0.3551],
    }.items():
        one = named[name]
        assert one.best.mean(axis=(0, 1))[:3] == pytest.approx(expected, abs=5e-5)
        assert (one.best_of_others <= one.best + 1e-12).all() and (one.best_of_others >= one.f1 - 1e-12).all()


def test_rows_of_published_systems_are_the_same_scored_or_recorded(dialogsum, published):
    [human], copy = systems.human_baseline(dialogsum), systems.baselines(dialogsum)[1]
    recorded = comparison.leaderboard([human, copy], dialogsum)
    scored = comparison.leaderboard([human, copy, *published], dialogsum)
    pd.testing.assert_frame_equal(recorded, scored)
    assert recorded.loc["Llama-3.2-3B-Instruct, LoRA", "ROUGE-L"].startswith("0.402 [")


def test_published_bart_scores_as_published_and_pair_by_pair(references):
    texts = pd.read_csv(PUBLISHED / "bart_large_dialogsum_predictions.csv")["prediction"].tolist()
    means = score_dialogues(texts, references).mean()
    assert means[["rouge1", "rouge2", "rougeL"]].tolist() == pytest.approx([0.4748, 0.2140, 0.3877], abs=5e-4)
    pairs = [(text, [reference]) for text, several in zip(texts, references, strict=True) for reference in several]
    assert len(pairs) == 1500
    assert score_dialogues(*zip(*pairs, strict=True)).mean().to_dict() == pytest.approx(means.to_dict(), abs=1e-12)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("original_model_summaries", [0.2333, 0.0761, 0.2015]),
        ("instruct_model_summaries", [0.4214, 0.1803, 0.3384]),
        ("peft_model_summaries", [0.4081, 0.1635, 0.3251]),
    ],
)
def test_published_flan_t5_scores_as_published(references, column, expected):
    table = pd.read_csv(PUBLISHED / "flan_t5_base_dialogsum_predictions.csv", keep_default_na=False)
    flat = [reference for several in references for reference in several]
    assert table["human_baseline_summaries"].str.strip().tolist() == flat  # the same order
    means = score_dialogues(table[column].tolist(), [[reference] for reference in flat]).mean()
    assert means[["rouge1", "rouge2", "rougeL"]].tolist() == pytest.approx(expected, abs=5e-4)


def test_published_full_and_lora_differ_as_published(references):
    table = pd.read_csv(PUBLISHED / "flan_t5_base_dialogsum_predictions.csv", keep_default_na=False)
    flat = [[reference] for several in references for reference in several]
    full, lora = (
        score_dialogues(table[name].tolist(), flat)["rouge1"].to_numpy().reshape(500, 3).mean(axis=1)
        for name in ("instruct_model_summaries", "peft_model_summaries")
    )
    found = compare(full, lora)
    assert (found.mean, found.low, found.high) == pytest.approx((0.0133, 0.0065, 0.0202), abs=1e-4)
    assert found.p < 0.001 and found.p_equivalent > 0.5 and found.minimum_detectable == pytest.approx(0.0101, abs=1e-4)
    assert interval(full) == pytest.approx((0.4123, 0.4306), abs=2e-3)


@pytest.mark.usefixtures("read_once")
@pytest.mark.parametrize(
    "file, column, rouge1, rouge2, rouge_l",
    [
        ("flan_t5_base", "original_model_summaries", 0.2333, 0.0761, 0.2015),
        ("flan_t5_base", "instruct_model_summaries", 0.4214, 0.1803, 0.3384),
        ("flan_t5_base", "peft_model_summaries", 0.4081, 0.1635, 0.3251),
        ("bart_large", "prediction", 0.4748, 0.2140, 0.3877),
        ("gpt_4o", "prediction", 0.3535, 0.1109, 0.2880),
        ("gpt_4", "prediction", 0.3496, 0.1235, 0.2899),
        ("gpt_35", "prediction", 0.3290, 0.1246, 0.2665),
    ],
)
def test_published_predictions_score_as_published(file, column, rouge1, rouge2, rouge_l, capsys):
    path, source = str(PUBLISHED / f"{file}_dialogsum_predictions.csv"), str(SHARED / "dialogsum")
    assert cli.main(["score", path, "--dataset", source, "--split", "test", "--column", column, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [scores[name] for name in ("rouge1", "rouge2", "rougeL")] == pytest.approx(
        [rouge1, rouge2, rouge_l], abs=5e-4
    )
