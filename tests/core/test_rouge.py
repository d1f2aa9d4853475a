"""ROUGE against rouge_score itself and hand-computed values."""

import socket
import unicodedata

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from dialogue_summarization import data, report, runs
from dialogue_summarization.rouge import TYPES, score_dialogues, score_pairs, sentences
from dialogue_summarization.rouge_metric import Rouge

# Beside plain sentences: stems, case, marks, digits, repetition, one word, nothing; and letters that references lack.
TEXTS = [
    "#Person1# was running late for the meetings. He apologises! Did Ms. Dawson accept?",
    "Person 1 runs late, and Ms Dawson accepted the apologies.",
    "RUNNING running runs ran; the the the the",
    "At 9:30 Zoë paid 1,200 dollars – 50% more. 谢谢 🎈",
    "  Two lines.\nAnd a third! \n\n Fine?  ",
    "word",
    "...",
    "",
]


def score(prediction, references):
    """Of one dialogue, by type."""
    (row,) = score_dialogues([prediction], [references]).to_dict("records")
    return row


@pytest.mark.parametrize("prediction", TEXTS)
def test_scores_are_those_of_rouge_score(prediction):
    scorer = RougeScorer(list(TYPES), use_stemmer=True)
    for reference in filter(str.isascii, TEXTS):
        expected = scorer.score(sentences(reference), sentences(prediction))
        assert score(prediction, [reference]) == pytest.approx(
            {name: expected[name].fmeasure for name in TYPES}, abs=1e-9
        )


PERFECT = {
    "Chinese": "小明和小红讨论去北京旅行。他们决定坐火车。",
    "Japanese": "太郎は花子に会いました。二人は駅で待ち合わせます。",
    "Thai": "สมชายลืมกุญแจไว้ที่บ้าน เขารอที่ประตู",
    "Hindi": "राम और सीता बाज़ार जाते हैं। वे सब्ज़ियाँ खरीदते हैं।",
    "Russian": "Аня забыла ключи дома. Борис ждёт её у двери.",
    "Arabic": "نسي أحمد مفاتيحه في البيت. هل تنتظره سارة؟",
    "Korean": "민수는 열쇠를 집에 두고 왔다. 지수가 기다린다.",
    "German": "Jürgen hört von der Größe. Er übt täglich.",
}


@pytest.mark.parametrize("text", PERFECT.values(), ids=PERFECT)
def test_a_perfect_summary_scores_1_in_any_script_composed_or_not(text):
    decomposed = unicodedata.normalize("NFD", text)
    for one, other in ((text, text), (decomposed, text), (text, decomposed)):
        assert score(one, [other]) == dict.fromkeys(TYPES, 1)


@pytest.mark.parametrize(
    ("prediction", "reference", "rouge1", "rouge2"),
    [
        ("Борис ждёт Аню", "Борис ждёт у двери", 4 / 7, 2 / 5),  # 2 of 3 and of 4 words, 1 of 2 and of 3 pairs
        ("他们坐火车", "他们坐飞机", 3 / 5, 2 / 4),  # each character is a word
        ("Er hört Musik", "Er hort Müsik", 1 / 3, 0),  # an umlaut is another letter, and no end of a word
        ("Er übt Zöpfe", "Er übt Zöpfe!", 1, 1),
        ("naïve cafés, running", "naïve cafés run", 1, 1),  # words of a to z are stemmed as ever
        ("राम गया", "राम गयी", 1 / 2, 0),  # vowel signs belong to their word
        ("ＡＢ中c", "ab 中 C", 2 / 3, 1 / 2),
        ("", "Борис", 0, 0),
    ],
)
def test_words_of_any_script_by_hand(prediction, reference, rouge1, rouge2):
    found = score(prediction, [reference])
    assert (found["rouge1"], found["rouge2"]) == pytest.approx((rouge1, rouge2), abs=1e-9)


def test_the_references_decide_about_words_for_all_systems():
    english = "Zoe paid in a naive cafe."
    expected = RougeScorer(list(TYPES), use_stemmer=True).score(english, "Zoë paid in a naïve café.")
    assert score("Zoë paid in a naïve café.", [english]) == {name: expected[name].fmeasure for name in TYPES}
    for last, rouge1 in (("Ann left.", 4 / 7), ("Zoë left.", 2 / 3)):  # 2 of "it is na ve", or of "it is naïve"
        found = score_dialogues(["It is naïve.", last], [["It is naive."], [last]])["rouge1"]
        assert found.tolist() == pytest.approx([rouge1, 1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他来了。她走了！“真的？”", "他来了。\n她走了！“真的？”"),
        ("राम गया। सीता आई", "राम गया।\nसीता आई"),
        ("One. Two!  Three?\nFour", "One.\nTwo!\nThree?\nFour"),
        (" At 9.30 p.m. she left. ", "At 9.30 p.m.\nshe left."),
        ("No end", "No end"),
        ("", ""),
    ],
)
def test_each_sentence_stands_on_a_line(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),  # rouge1, rouge2, rougeL, rougeLsum
    [
        # 5 of 6 words, 3 of 5 pairs, the common subsequence has 5 words.
        ("the cat sat on the mat", ["the cat lay on the mat"], (5 / 6, 3 / 5, 5 / 6, 5 / 6)),
        # Precision 1 and recall 1/2; of pairs 1 and 1/3.
        ("red bike", ["red bike two lemons"], (2 / 3, 1 / 2, 2 / 3, 2 / 3)),
        ("cats running", ["Cat runs!"], (1, 1, 1, 1)),  # the same stems
        ("b a", ["a b"], (1, 0, 1 / 2, 1 / 2)),
        # Sentences in another order: a word pair at the seam is lost, and L alone minds the order.
        ("one two three. four five six.", ["four five six. one two three."], (1, 4 / 5, 1 / 2, 1)),
        ("a b", ["a b", "c d"], (1 / 2, 1 / 2, 1 / 2, 1 / 2)),
        ("a b", ["a b", "a b c d", "x"], (5 / 9, 1 / 2, 5 / 9, 5 / 9)),
        ("", ["a b"], (0, 0, 0, 0)),
    ],
)
def test_scores_by_hand(prediction, references, expected):
    assert score(prediction, references) == pytest.approx(dict(zip(TYPES, expected, strict=True)), abs=1e-9)


def test_a_dialogue_scores_the_mean_over_its_references():
    several = score(TEXTS[0], TEXTS[1:5])
    single = pd.DataFrame([score(TEXTS[0], [reference]) for reference in TEXTS[1:5]])
    assert several == pytest.approx(single.mean().to_dict(), abs=1e-12)


def test_score_dialogues_gives_a_row_per_dialogue_in_order():
    table = score_dialogues(["a b", "c", "b a"], [["a b"], ["d", "e"], ["a b"]])
    assert list(table.columns) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert table.to_numpy().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], [["a"]], "2 predictions for 1 dialogues"),
        ([], [["a"]], "0 predictions for 1 dialogues"),
        (["a", "b", "c"], [["a"], [], ["c"]], "No reference for the dialogue in place 1"),
    ],
)
def test_lists_that_do_not_fit_are_errors(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        score_dialogues(predictions, references)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["the cat lay on the mat", "a b"], (11 / 12, 4 / 5, 11 / 12, 11 / 12)),
        ([["the cat lay on the mat"], ["a b", "c d"]], (2 / 3, 11 / 20, 2 / 3, 2 / 3)),
    ],
)
def test_the_metric_takes_texts_and_lists_and_no_network(monkeypatch, references, expected):
    def refuse(*arguments):
        raise AssertionError(f"a connection: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    means = Rouge().compute(predictions=["the cat sat on the mat", "a b"], references=references)
    assert means == pytest.approx(dict(zip(TYPES, expected, strict=True)), abs=1e-9)
    assert {type(value) for value in means.values()} == {float}


def test_the_metric_adds_batch_by_batch():
    metric = Rouge()
    metric.add_batch(predictions=["a b"], references=[["a b", "c d"]])
    metric.add_batch(predictions=["x"], references=[["x", "x"]])
    assert metric.compute()["rouge1"] == pytest.approx(0.75)


VOCABULARY = ("cat", "cats", "sat", "mat.", "Lee!", "9:30", "ran", "running", "the")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), st.randoms())
def test_the_order_of_references_does_not_matter_and_scores_are_shares(prediction, references, random):
    scores = score(prediction, references)
    shuffled = random.sample(references, len(references))
    assert score(prediction, shuffled) == pytest.approx(scores, abs=1e-12)
    assert all(0 <= value <= 1 for value in scores.values())


@given(WORDS, WORDS)
def test_f1_is_symmetric(one, other):
    there, back = score(one, [other]), score(other, [one])
    # Of several longest subsequences Lsum takes one, which may differ by direction: not symmetric.
    assert [there[name] for name in TYPES[:3]] == pytest.approx([back[name] for name in TYPES[:3]], abs=1e-12)


@given(WORDS.filter(lambda text: len(text.split()) > 1))
def test_a_text_scores_1_against_itself(text):
    assert score(text, [text]) == pytest.approx(dict.fromkeys(TYPES, 1.0), abs=1e-12)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=4))
def test_pairs_have_a_row_per_reference(references):
    table = score_pairs([several[0] for several in references], references)
    assert len(table) == sum(map(len, references))
    assert table.groupby(level="dialogue").mean().to_numpy() == pytest.approx(
        score_dialogues([several[0] for several in references], references).to_numpy()
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", [0.5377121824160498, 0.2226119760192006, 0.40637480423606426, 0.4719786789045209]),
        ("zero-shot", [0.37434230335616353, 0.13012130430754038, 0.2886240341646693, 0.3442223238982236]),
    ],
)
def test_scores_of_english_stay_to_the_last_digit(name, expected):
    test = data.load_source("sample")["test"]
    run = runs.read(runs.OUTPUTS / "reference" / "quickstart" / name / "seed-0")
    scores = score_dialogues(report.predictions(run, test), test["summaries"])
    assert scores.mean().tolist() == pytest.approx(expected, abs=1e-15)
    assert "tok:" not in report.signature(test)
