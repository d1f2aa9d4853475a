"""Corruptions by hand, and likelihoods against a plain forward pass of each summary alone."""

import pytest
import torch

from dialogue_summarization import data, models, runs
from dialogue_summarization.disk import write_csv
from dialogue_summarization.evaluation import likelihood

DIALOGUE = "#Person1#: Hi, Ann.\n#Person2#: Nine stamps, please."


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("#Person1# greets #Person2#.", "#Person2# greets #Person1#."),
        ("#Person2#'s stamps cost #Person2# a lot.", "#Person1#'s stamps cost #Person1# a lot."),
        ("Ann buys stamps.", "Ann buys stamps."),
    ],
)
def test_speakers_change_places(summary, expected):
    assert likelihood.swap_speakers(summary, DIALOGUE) == expected


def test_speakers_with_names_change_places_as_whole_words():
    dialogue = "Ann: Hi.\nAnna: Hello.\nBen: Hey."
    assert likelihood.swap_speakers("Anna and Ann meet Ben.", dialogue) == "Ann and Anna meet Ben."
    assert likelihood.swap_speakers("Ben waves.", "Ben: Hi.") == "Ben waves."


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("They pay 1999 dollars.", "They pay 2000 dollars."),
        ("Nine of them left at 9.", "Ten of them left at 9."),
        ("She is twenty.", "She is thirty."),
        ("She is ninety.", "She is eighty."),
        ("In room 007", "In room 008"),
        ("#Person1# has one key.", "#Person1# has one key."),
    ],
)
def test_a_number_changes(summary, expected):
    assert likelihood.change_number(summary, DIALOGUE) == expected


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
        ("they talk", "they talk"),
    ],
)
def test_a_negation_is_toggled(summary, expected):
    assert likelihood.toggle_negation(summary, DIALOGUE) == expected


def test_a_likelihood_is_that_of_a_plain_forward_pass(tiny, tiny_data):
    bundle = models.load_model(tiny)
    test = data.load(tiny)["test"]
    for dialogue, several in zip(test["dialogue"], test["summaries"], strict=True):
        for summary in {*several, "No."}:
            row = bundle.family.encode(dialogue, summary)
            labels = torch.tensor([row["labels"]])
            if bundle.family.label_shift:
                ids = torch.tensor([row["input_ids"] + row["labels"]])
                logits = bundle.model(input_ids=ids).logits[:, len(row["input_ids"]) - 1 : -1]
            else:
                logits = bundle.model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits
            expected = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).mean().item()
            assert likelihood.log_likelihood(bundle, dialogue, summary) == pytest.approx(expected, abs=1e-5)


def test_the_record_of_the_test_and_its_table(family_name, tiny, made_once, tmp_path):
    run = made_once(family_name, "zero-shot", tmp_path)
    found = likelihood.run_test(models.load_model(tiny), data.load(tiny)["test"])
    assert list(found.columns) == ["id", "kind", "reference", "wrong"]
    counts = found["kind"].value_counts().to_dict()
    assert counts[likelihood.OTHER] == 5 and counts["number changed"] >= 1
    assert (found[["reference", "wrong"]] < 0).all(axis=None)
    write_csv(run.folder / "likelihood.csv", found)
    table = likelihood.table([runs.read(run.folder)])
    assert any(column == "of another dialogue (n = 5)" for column in table.columns)
    right = (found["reference"] > found["wrong"])[found["kind"] == likelihood.OTHER]
    assert table["of another dialogue (n = 5)"].iloc[0].startswith(f"{right.mean():.0%} [")


def test_committed_records_are_read():
    """Of the untrained model on DialogSum, the reference is likelier than with speakers swapped in 281 of 433 cases."""
    made = runs.collect("smollm2-dialogsum", "nowhere")
    table = likelihood.table([run for run in made if run.config.seed == 0 and run.name != "lora-balanced"])
    assert table.loc["zero-shot (reference)", "speakers swapped (n = 433)"].startswith("65% [")
    assert table.loc["full (reference)", "speakers swapped (n = 433)"].startswith("94% [")
