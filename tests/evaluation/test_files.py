"""Files of summaries: matched to their dialogues by id or by place, and told what is wrong with them."""

import pandas as pd
import pytest
from helpers import tiny_experiment

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


@pytest.mark.parametrize("alike", [True, False])
def test_a_row_per_reference_counts_against_its_own(split, tmp_path, alike):
    rows = [{"text": several[0 if alike else place]} for several in split["summaries"] for place in range(len(several))]
    system, texts = systems.of_file("mine", write(tmp_path, rows), "text", split)
    if alike:
        assert texts == [several[0] for several in split["summaries"]] and (system.best == 1).all()
    else:  # each the best of its own reference: no system wrote one summary per dialogue
        assert texts is None and system.best is None and system.best_of_others is None and (system.f1 == 1).all()


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
