"""Files of summaries: matched to their dialogues by id or by place, and told what is wrong with them."""

import re
import unicodedata

import pandas as pd
import pytest
from helpers import tiny_experiment, write_jsonl

from dialogue_summarization import data
from dialogue_summarization.errors import DataError
from dialogue_summarization.evaluation import systems


@pytest.fixture(scope="module")
def split(tiny_models, tiny_data):
    """Five dialogues, d_20 to d_24, of three references each."""
    return data.load(tiny_experiment(tiny_models["llama"], tiny_data))["test"]


def write(folder, rows):
    path = folder / "summaries.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_rows_are_matched_by_id(split, tmp_path):
    rows = [{"id": f"d_{n}", "prediction": f"summary {n}"} for n in (24, 22, 20, 21, 23)]
    texts = systems.load_predictions(write(tmp_path, rows), "prediction", split)
    assert texts == [f"summary {n}" for n in range(20, 25)]
    system, same = systems.of_file("mine", tmp_path / "summaries.csv", "prediction", split)
    assert same == texts and system.f1.shape == system.best_of_others.shape == (1, 5, 4) and system.kind == "file"


def test_ids_with_decomposed_letters_are_found(tmp_path):
    rows = [{"id": unicodedata.normalize("NFD", f"é{n}"), "dialogue": f"Hi {n}.", "summary": "x"} for n in range(2)]
    test = data.group_references(rows, "rows")
    path = write(tmp_path, [{"id": row["id"], "prediction": row["dialogue"]} for row in reversed(rows)])
    assert systems.load_predictions(path, "prediction", test) == ["Hi 0.", "Hi 1."]


@pytest.mark.parametrize("alike", [True, False])
def test_a_row_per_reference_counts_against_its_own(split, tmp_path, alike):
    rows = [{"text": several[0 if alike else place]} for several in split["summaries"] for place in range(len(several))]
    system, texts = systems.of_file("mine", write(tmp_path, rows), "text", split)
    if alike:
        assert texts == [several[0] for several in split["summaries"]] and (system.best == 1).all()
    else:  # each the best of its own reference: no system wrote one summary per dialogue
        assert (
            texts == [row["text"] for row in rows]
            and system.best is None
            and system.best_of_others is None
            and (system.f1 == 1).all()
        )


SCATTERED = [
    {"id": f"t_{n % 3}_{n}", "dialogue": "ABC"[n % 3], "summary": f"Text {'xyzuvw'[n]} {n}."} for n in range(6)
]


@pytest.mark.parametrize("form", ["csv", "jsonl", "CSV"])
@pytest.mark.parametrize("by", ["order", "row ids", "row ids, shuffled"])
def test_a_row_per_row_of_the_data_counts_against_its_own_reference(tmp_path, form, by):
    """References of a dialogue need not be neighbours."""
    test = data.group_references(SCATTERED, "rows")
    rows = [{"id": row["id"], "prediction": row["summary"]} for row in SCATTERED]
    rows = rows[::-1] if by == "row ids, shuffled" else rows
    rows = [{"prediction": row["prediction"]} for row in rows] if by == "order" else rows
    path = tmp_path / f"p.{form}"
    frame = pd.DataFrame(rows)
    frame.to_csv(path, index=False) if form.lower() == "csv" else frame.to_json(path, orient="records", lines=True)
    system, texts = systems.of_file("mine", path, "prediction", test)
    assert sorted(texts) == sorted(row["prediction"] for row in rows)
    assert (system.f1 == 1).all() and system.f1.shape == (1, 3, 4)


def test_rows_with_several_references_take_a_summary_per_row_or_reference(tmp_path):
    rows = [{"id": n, "dialogue": "AB"[n], "summary": [f"One {n}.", f"Two {n}."]} for n in range(2)]
    test = data.group_references(rows, "rows")
    for texts, rouge1 in ((["One 0.", "One 1."], 3 / 4), (["One 0.", "Two 0.", "One 1.", "Two 1."], 1)):
        system, _ = systems.of_file("mine", write(tmp_path, [{"text": text} for text in texts]), "text", test)
        assert system.score("rouge1") == rouge1
    path = write(tmp_path, [{"id": n, "prediction": f"One {n}."} for n in (1, 0)])
    assert systems.load_predictions(path, "prediction", test) == ["One 0.", "One 1."]


def test_ids_of_rows_that_are_missing_or_mixed_with_dialogues_are_named(tmp_path):
    test = data.group_references(SCATTERED, "rows")
    path = write(tmp_path, [{"id": row["id"], "prediction": "a"} for row in SCATTERED[:5]])
    with pytest.raises(DataError, match=r"missing: 1 id \(t_2_5\)"):
        systems.load_predictions(path, "prediction", test)
    assert systems.load_predictions(path, "prediction", test, allow_missing=True).count("") == 1
    path = write(tmp_path, [{"id": name, "prediction": "a"} for name in ("t_0", "t_1", "t_2_2")])
    with pytest.raises(DataError, match=r"unknown: 2 ids \(t_0, t_1\)"):
        systems.load_predictions(path, "prediction", test)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["a"], "text expected, not list"),
        ({"summary_text": "a"}, "text expected, not dict"),
        (7, "text expected, not int"),
        ("[{'summary_text': 'a'}]", "a list written as text"),
        ("['a' 'b']", "a list written as text"),
    ],
)
def test_a_summary_that_is_no_text_is_named(split, tmp_path, value, said):
    rows = [{"id": f"d_{n}", "prediction": value if n == 22 else "a"} for n in range(20, 25)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=f"row 3, column 'prediction': {re.escape(said)}"):
        systems.load_predictions(tmp_path / "p.jsonl", "prediction", split)


def test_rows_of_json_may_lack_the_summary(split, tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"id": "d_20", "prediction": "a\r\nb"}, {"id": "d_21"}])
    texts = systems.load_predictions(tmp_path / "p.jsonl", "prediction", split, allow_missing=True)
    assert texts == ["a\nb", "", "", "", ""]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([20, 21], "missing: 3 ids (d_22, d_23, d_24)"),
        ([20, 20, 21, 22, 23, 24], "repeated: 1 id (d_20)"),
        ([*range(20, 25), *range(30, 37)], "unknown: 7 ids (d_30, d_31, d_32, d_33, d_34, ...)"),
    ],
)
def test_what_does_not_fit_is_counted_and_named(split, tmp_path, ids, said):
    path = write(tmp_path, [{"id": f"d_{n}", "prediction": "a"} for n in ids])
    with pytest.raises(DataError) as error:
        systems.load_predictions(path, "prediction", split)
    assert said in str(error.value) and "--allow-missing" in str(error.value)


def test_missing_and_empty_summaries_may_be_allowed(split, tmp_path):
    path = write(tmp_path, [{"id": "d_20", "prediction": "a"}, {"id": "d_23", "prediction": " "}])
    with pytest.raises(DataError, match=r"missing: 3 ids .*; empty: 1 id \(d_23\)"):
        systems.load_predictions(path, "prediction", split)
    texts = systems.load_predictions(path, "prediction", split, allow_missing=True)
    assert texts == ["a", "", "", "", ""]


def test_other_columns_and_counts_are_named(split, tmp_path):
    path = write(tmp_path, [{"text": "a"}])
    with pytest.raises(DataError, match=r"no column 'prediction' \(there are: text\)"):
        systems.load_predictions(path, "prediction", split)
    with pytest.raises(DataError, match="1 rows where the split has 15 references"):
        systems.load_predictions(path, "text", split)
