"""The ROUGE conventions, against values worked out by hand, and the committed record against the published table."""

from pathlib import Path

import pandas as pd
import pytest

from dialogue_summarization.evaluation import systems
from measurements import conventions, tables

TEXTS = ["the cat sat on the mat"]
REFERENCES = [["the cats sat", "dogs run far"]]
# Against the first: 3 of 6 and 3 of 3 words, where "cats" counts as "cat"; without stemming 2 of each.
MEAN, FIRST, UNSTEMMED = 1 / 3, 2 / 3, 2 * (2 / 6 * 2 / 3) / (2 / 6 + 2 / 3) / 2


@pytest.mark.parametrize(
    ("convention", "rouge1"),
    [
        ("mean of three references (this project)", MEAN),
        ("best of three references", FIRST),
        ("first reference only", FIRST),
        ("mean of three, without stemmer", UNSTEMMED),
    ],
)
def test_a_convention_gives_what_it_says(convention, rouge1):
    assert conventions.CONVENTIONS[convention](TEXTS, REFERENCES)["rouge1"] == pytest.approx(rouge1, abs=1e-4)


def test_lsum_finds_sentences_in_another_order():
    texts, references = ["Ann sings loud. Bob waits here."], [["Bob waits here. Ann sings loud."]]
    by = conventions.CONVENTIONS
    assert by["mean of three references (this project)"](texts, references)["rougeL"] == 0.5
    assert by["mean of three, Lsum in place of L"](texts, references)["rougeL"] == 1


def test_the_committed_record_has_the_published_score():
    record = tables.load()["conventions"]
    assert list(record["scores"]) == list(conventions.CONVENTIONS)
    published = pd.read_csv(Path(systems.__file__).with_name("published_scores.csv")).set_index("system")
    mean = record["scores"]["mean of three references (this project)"]["BART-large"]
    assert mean == {name: round(published.loc["BART-large, fine-tuned", name], 4) for name in tables.MEASURES}
