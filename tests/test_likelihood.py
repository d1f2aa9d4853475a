"""Corruptions by hand, and likelihoods against a plain forward pass of each summary alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_experiment

from dialogue_summarization import corruptions, data, experiments, likelihood, models, study

DIALOGUE = "#Person1#: Hi, Ann.\n#Person2#: Nine stamps, please."


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("#Person1# greets #Person2#.", "#Person2# greets #Person1#."),
        ("#Person2#'s stamps cost #Person2# a lot.", "#Person1#'s stamps cost #Person1# a lot."),
        ("Ann buys stamps.", None),
    ],
)
def test_speakers_change_places(summary, expected):
    assert corruptions.swap_speakers(summary, DIALOGUE) == expected


def test_speakers_with_names_change_places_as_whole_words():
    dialogue = "Ann: Hi.\nAnna: Hello.\nBen: Hey."
    assert corruptions.swap_speakers("Anna and Ann meet Ben.", dialogue) == "Ann and Anna meet Ben."
    assert corruptions.swap_speakers("Ben waves.", "Ben: Hi.") is None


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("They pay 1999 dollars.", "They pay 2000 dollars."),
        ("Nine of them left at 9.", "Ten of them left at 9."),
        ("She is twenty.", "She is thirty."),
        ("She is ninety.", "She is eighty."),
        ("In room 007", "In room 008"),
        ("#Person1# has one key.", None),
    ],
)
def test_a_number_changes(summary, expected):
    assert corruptions.change_number(summary, DIALOGUE) == expected


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("Ann doesn't pay.", "Ann does pay."),
        ("Ann can't pay and won't.", "Ann can pay and won't."),
        ("Ann will not pay.", "Ann will pay."),
        ("Ann never pays.", "Ann pays."),
        ("Ann is paying.", "Ann is not paying."),
        ("#Person1# asks about it.", "#Person1# doesn't ask about it."),
        ("Ann tries it.", "Ann doesn't try it."),
        ("Ann watches it.", "Ann doesn't watch it."),
        ("Ann has it.", "Ann doesn't have it."),
        ("they talk", None),
    ],
)
def test_a_negation_is_toggled(summary, expected):
    assert corruptions.toggle_negation(summary, DIALOGUE) == expected


def test_likelihoods_are_those_of_each_summary_alone(tiny, tiny_data):
    model = models.load(tiny)
    test = data.load(tiny)["test"]
    dialogues = list(test["dialogue"])
    summaries = [(place, text) for place, several in enumerate(test["summaries"]) for text in {*several, "No."}]
    found = likelihood.log_likelihoods(model, dialogues, summaries[::-1], batch_size=3)[::-1]
    for place, (owner, summary) in enumerate(summaries):
        row = model.family.encode(dialogues[owner], summary)
        labels = torch.tensor([row["labels"]])
        if model.family.label_shift:
            ids = torch.tensor([row["input_ids"] + row["labels"]])
            logits = model.network(input_ids=ids).logits[:, len(row["input_ids"]) - 1 : -1]
        else:
            logits = model.network(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits
        expected = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).mean().item()
        assert found[place] == pytest.approx(expected, abs=1e-5)


def test_a_run_records_the_test_and_the_table_shows_it(tiny, tmp_path):
    run = study.run(tiny, experiments.method("zero-shot"), outputs=tmp_path)
    assert list(run.likelihood.columns) == ["id", "kind", "reference", "wrong"]
    counts = run.likelihood["kind"].value_counts().to_dict()
    assert counts[corruptions.OTHER] == 5 and counts["number changed"] >= 1
    assert (run.likelihood[["reference", "wrong"]] < 0).all(axis=None)
    table = likelihood.table([run])
    assert any(column == "of another dialogue (n = 5)" for column in table.columns)
    right = (run.likelihood["reference"] > run.likelihood["wrong"])[run.likelihood["kind"] == corruptions.OTHER]
    assert table["of another dialogue (n = 5)"].iloc[0].startswith(f"{right.mean():.0%} [")


def test_records_without_the_test_have_an_empty_row(tiny_models, tiny_data, tmp_path):
    run = study.run(tiny_experiment(tiny_models["llama"], tiny_data), experiments.method("zero-shot"), outputs=tmp_path)
    (run.folder / "likelihood.csv").unlink()
    again = study.run(
        tiny_experiment(tiny_models["llama"], tiny_data), experiments.method("zero-shot"), outputs=tmp_path
    )
    assert again.likelihood.empty and likelihood.table([again]).iloc[0].tolist() == ["not measured"]
    assert isinstance(again.likelihood, pd.DataFrame) and np.isfinite(again.metrics["rougeL"])
