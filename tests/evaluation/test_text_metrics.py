"""Text measures by hand, against sacrebleu itself, and BERTScore against figures measured on published systems."""

import math
import time
import unicodedata

import datasets
import numpy as np
import pandas as pd
import pytest
import sacrebleu
from helpers import SHARED, tiny_rows

from dialogue_summarization import data
from dialogue_summarization.evaluation.text_metrics import (
    bertscores,
    corpus,
    describe,
    failure_flags,
    has_bertscore,
    novelty,
    per_dialogue,
    repetition,
    signature,
    words,
)
from dialogue_summarization.intervals import interval
from dialogue_summarization.rouge import score_pairs

DIALOGUE = "#Person1#: Ann, did you pay 1,200 dollars in May?\n#Person2#: No, Mr. Lee did. Twelve of us may go to Rome."


def test_novelty_and_repetition_by_hand():
    assert novelty(["a", "b", "c", "d"], ["a", "b", "x", "c"], 1) == 1 / 4
    assert novelty(["a", "b", "c", "d"], ["a", "b", "x", "c"], 2) == 2 / 3
    assert repetition(["a", "b", "c", "a", "b", "c"]) == 1 / 4  # abc bca cab abc
    assert math.isnan(repetition(["a", "b"])) and math.isnan(novelty([], ["a"], 1))
    assert words("#Person1#'s keys, 9:30") == ["person1", "'s", "keys", "9", "30"]


def test_there_is_a_row_per_dialogue():
    table = per_dialogue(["Ann pays.", ""], [DIALOGUE, DIALOGUE], [["Ann pays it all."], ["a", "b c"]])
    assert list(table.columns) == [
        "words", "length ratio", "compression", "new 1-grams", "new 2-grams", "repetition",
    ]  # fmt: skip
    assert table["words"].tolist() == [2, 0]
    assert table["length ratio"].tolist() == pytest.approx([2 / 4, 0])
    assert table["new 1-grams"][0] == 1 / 2
    assert table.loc[1, ["compression", "new 1-grams", "repetition"]].isna().all()


PREDICTIONS = ["the cat sat on the mat", "a dog barks loudly at night", "nothing in common here"]
REFERENCES = [["the cat lay on the mat", "a cat sat on a mat"], ["the dog barks at night"], ["quite other words"]]


def test_chrf_and_bleu_are_sacrebleus():
    streams = [
        ["the cat lay on the mat", "the dog barks at night", "quite other words"],
        ["a cat sat on a mat", "", ""],
    ]
    found = corpus(PREDICTIONS, REFERENCES, resamples=100)
    assert found["chrF"][0] == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, streams).score)
    assert found["BLEU"][0] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, streams).score)
    for value, (low, high) in found.values():
        assert low < value < high
    said = signature(REFERENCES)
    assert "tok:13a" in said and said.count("version:2") == 2


@pytest.mark.parametrize(
    "text", ["小明和小红讨论去北京旅行。", "太郎は花子に会いました。", "เขารอที่ประตู", "वे सब्ज़ियाँ खरीदते हैं।"]
)
def test_measures_know_words_of_any_script(text):
    found = corpus([unicodedata.normalize("NFD", text)] * 2, [[text], [text]], resamples=10)
    assert [found[name][0] for name in ("chrF", "BLEU")] == pytest.approx([100, 100])
    flags = failure_flags(text, "A: " + text * 2)
    assert not any(flags[name] for name in ("cut off", "repeats", "empty"))  # Thai has no full stop
    assert failure_flags(text * 3, "A: x")["repeats"]
    row = per_dialogue([text], [f"A: {text}"], [[text]]).iloc[0]
    assert row["words"] >= 4 and (row["length ratio"], row["new 1-grams"], row["new 2-grams"]) == (1, 0, 0)


def test_of_one_dialogue_there_is_no_interval():
    found = describe(
        ["Ann pays."], datasets.Dataset.from_dict({"dialogue": [DIALOGUE], "summaries": [["Ann pays it."]]})
    )
    assert np.isnan([bounds for _, bounds in found.values()]).all() and found["words"][0] == 2


def test_empty_summaries_score_0():
    assert corpus(["", ""], [["a b"], ["c"]], resamples=100) == {"chrF": (0.0, (0.0, 0.0)), "BLEU": (0.0, (0.0, 0.0))}


def test_bleu_by_hand():
    """Precisions 5/6, 3/5, 1/4 and, none being found, 1 / (2 x 3); no penalty, both have 6 words."""
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    assert corpus([PREDICTIONS[0]], [REFERENCES[0][:1]], 1)["BLEU"][0] == pytest.approx(expected)


def test_bertscore_of_equal_and_missing_texts():
    if not has_bertscore():
        pytest.skip("needs the extra bertscore")
    found = bertscores(["the cat sat", "", "a dog"], [["the cat sat", "dogs bark"], ["x"], ["a dog"]])
    assert found[1] == 0 and found[2] == pytest.approx(1, abs=1e-5) and 0 < found[0] < 1
    assert "MiniLM" in signature([["x"]])


def test_bertscore_of_published_systems():
    if not has_bertscore() or not (SHARED / "published").is_dir():
        pytest.skip("needs the extra bertscore and shared/published")
    references = data.load_source(str(SHARED / "dialogsum"))["test"]["summaries"]
    table = pd.read_csv(SHARED / "published" / "flan_t5_base_dialogsum_predictions.csv", keep_default_na=False)[::3]
    for name, expected in (("original_model_summaries", 0.465), ("instruct_model_summaries", 0.716)):
        # The first 40 dialogues of 500: near the whole set's score.
        found = bertscores(table[name].tolist()[:40], list(references)[:40]).mean()
        assert found == pytest.approx(expected, abs=0.06)


def test_one_run_of_500_dialogues_takes_less_than_5_seconds():
    """ROUGE with intervals and every text measure, three references a dialogue."""
    rows = tiny_rows(500, references=3)
    dialogues = [row["dialogue"] + " again" * (n % 150) for n, row in enumerate(rows[::3])]
    filler = " They talk about it for a while, and then they agree to meet again next week."
    references = [[row["summary"] + filler for row in rows[n : n + 3]] for n in range(0, 1500, 3)]
    predictions = [f"{several[1]} It is number {n}." for n, several in enumerate(references)]
    assert (len(dialogues), len(references)) == (500, 500)
    start = time.process_time()
    scores = score_pairs(predictions, references).groupby(level=0).mean()
    assert [interval(scores[name]) for name in scores]
    assert describe(predictions, datasets.Dataset.from_dict({"dialogue": dialogues, "summaries": references}))
    seconds = time.process_time() - start
    assert seconds < 5, f"{seconds:.1f} s"
    assert np.isfinite(scores.to_numpy()).all()
