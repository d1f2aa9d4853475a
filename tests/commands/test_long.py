"""Dialogues longer than a model takes, in parts: nothing is lost, every part fits, and it is said."""

import pytest
from helpers import tiny_rows

from dialogue_summarization import generation, study
from dialogue_summarization.commands import cli, trained

TURNS = "\n".join(row["dialogue"] for row in tiny_rows(30))


@pytest.fixture
def run(made_once, tmp_path):
    return made_once("llama", "full", tmp_path)


@pytest.mark.parametrize(
    ("text", "glue"),
    [(TURNS, "\n"), (TURNS.replace("\n", " "), " "), (TURNS.replace("\n", "").replace(" ", ""), "")],
    ids=["turns", "one turn", "one word"],
)
def test_parts_hold_the_whole_dialogue_and_each_fits(run, text, glue):
    family = study.load_run(run).family
    parts = trained.split(family, text)
    assert glue.join(parts) == text and len(parts) >= 8
    assert not any(family.encode(part)["truncated"] for part in parts)
    if glue:
        assert all(part.split(glue) == [unit for unit in part.split(glue) if unit] for part in parts)
    assert trained.split(family, parts[0]) == parts[:1]


def test_the_summaries_of_the_parts_are_summarized(run, monkeypatch):
    bundle, settings = study.load_run(run), run.experiment.generation
    parts, asked = trained.split(bundle.family, TURNS), []
    summarize = generation.summarize

    def recorded(*given, **more):
        asked.append(given[1])
        return summarize(*given, **more)

    monkeypatch.setattr(generation, "summarize", recorded)
    text, count = trained.summarize_long(bundle, TURNS, settings, "split")
    wanted = "\n".join(summarize(bundle, parts, settings, progress=False))
    assert count == len(parts) and asked[:2] == [parts, trained.split(bundle.family, wanted)]
    assert [text] == summarize(bundle, asked[-1], settings, progress=False) and len(asked[-1]) == 1
    for end in ("\r\n", "\r", "\u2028"):  # turns are found whatever the system
        assert trained.summarize_long(bundle, TURNS.replace("\n", end), settings, "split") == (text, count)
    assert trained.summarize_long(bundle, TURNS, settings, "cut") == (*summarize(bundle, [TURNS], settings), 1)


def test_summaries_that_grow_are_cut(run, monkeypatch):
    bundle, calls = study.load_run(run), []

    def longer(_, dialogues, *__, **___):
        calls.append(dialogues)
        return [f"{dialogue} and more" for dialogue in dialogues]

    monkeypatch.setattr(generation, "summarize", longer)
    trained.summarize_long(bundle, TURNS, run.experiment.generation, "split")
    assert len(calls) == 2 and len(calls[1]) == 1


def test_the_command_says_how_many_parts(run, tmp_path, capsys):
    (tmp_path / "long.txt").write_text(TURNS, encoding="utf-8")
    (tmp_path / "short.txt").write_text(tiny_rows(1)[0]["dialogue"], encoding="utf-8")
    bundle, settings = study.load_run(run), run.experiment.generation
    expected, count = trained.summarize_long(bundle, TURNS, settings, "split")
    capsys.readouterr()
    assert cli.main(["summarize", str(run.folder), str(tmp_path / "long.txt"), "--long", "split"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == expected.strip() and f"summarized in {count} parts" in said.err
    assert cli.main(["summarize", str(run.folder), str(tmp_path / "short.txt"), "--long", "split"]) == 0
    assert "parts" not in capsys.readouterr().err
