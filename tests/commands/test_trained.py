"""Commands on a run's model, on tiny runs: minimum Bayes risk, likelihoods, and which runs a name finds."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers import tiny_experiment

from dialogue_summarization import data, experiments, runs, study
from dialogue_summarization.commands import cli, trained
from dialogue_summarization.evaluation import results
from dialogue_summarization.experiments import Generation
from dialogue_summarization.rouge import score_dialogues


@pytest.fixture(scope="module")
def run(tiny_models, tiny_data, tmp_path_factory):
    """A tiny trained Llama that generates with beams."""
    experiment = tiny_experiment(tiny_models["llama"], tiny_data, generation=Generation(max_new_tokens=12, num_beams=2))
    return study.run(experiment, experiments.method("full"), outputs=tmp_path_factory.mktemp("outputs"))


def command(run, *more):
    return cli.main(["mbr", str(run.folder), "--samples", "4", "--temperature", "2", "--epsilon", "0.001", *more])


def test_mbr_leaves_a_record_that_results_show(run, tiny_data, capsys):
    test = data.load_source(str(tiny_data))["test"]
    assert command(run, "--dataset", str(tiny_data)) == 0
    record = json.loads((run.folder / "mbr-4-2-0.001.json").read_text("utf-8"))
    with (run.folder / "mbr-4-2-0.001.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(test["id"])
    scored = score_dialogues([row["prediction"] for row in rows], list(test["summaries"])).mean()
    assert record["rougeL"] == pytest.approx(scored["rougeL"], abs=1e-6)
    assert f"rougeL {record['rougeL']:.4f} (own {record['own']['rougeL']:.4f})" in capsys.readouterr().out
    asked = (run.config.key, 4, 2.0, 0.001)
    assert (record["key"], record["samples"], record["temperature"], record["epsilon"]) == asked
    assert "optimizes the measure" in results.text([run], test)
    before = (run.folder / "mbr-4-2-0.001.csv").read_bytes()
    assert command(run) == 0  # the same draws again, from the run's own data
    assert (run.folder / "mbr-4-2-0.001.csv").read_bytes() == before
    assert runs.read(run.folder).config.key == run.config.key  # still a record
    assert command(run, "--seed", "5", "--temperature", "3") == 0  # which replaces no other
    assert (run.folder / "mbr-4-3-0.001-seed5.csv").exists()
    assert (run.folder / "mbr-4-2-0.001.csv").read_bytes() == before


def test_settings_are_tried_on_validation_without_touching_test(run):
    there = {path.name for path in run.folder.iterdir()}
    assert command(run, "--split", "validation", "--seed", "3") == 0
    assert {path.name for path in run.folder.iterdir()} - there == {"mbr-4-validation-2-0.001-seed3.json"}
    record = json.loads((run.folder / "mbr-4-validation-2-0.001-seed3.json").read_text("utf-8"))
    assert (record["split"], record["seed"]) == ("validation", 3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--samples", "1"], "--samples is 2 or more"),
        (["--temperature", "0"], "--temperature above 0"),
        (["--temperature", "nan"], "--temperature above 0"),
        (["--dataset", "sample"], "not the data that"),
    ],
)
def test_what_cannot_be_is_said(run, capsys, more, said):
    assert command(run, *more) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mbr", "likelihood"])
def test_a_record_without_weights_says_how_to_make_them(name, capsys):
    folder = runs.OUTPUTS / "reference" / "quickstart" / "full" / "seed-0"
    assert cli.main([name, str(folder)]) == 1
    assert "weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mbr", "likelihood"])
def test_how_many_dialogues_lost_their_end_is_said(name, tiny_models, tiny_data, tmp_path, capsys):
    experiment = tiny_experiment(tiny_models["llama"], tiny_data, max_prompt_tokens=64)
    made = study.run(experiment, experiments.method("zero-shot"), outputs=tmp_path)
    assert made.metrics["truncated_dialogues"] == 5
    assert cli.main([name, str(made.folder)]) == 0
    assert "5 of 5 dialogues are longer than the model takes: " in capsys.readouterr().err


def test_likelihoods_are_written_into_the_run_and_shown(run, tiny_data, capsys):
    assert cli.main(["likelihood", str(run.folder), "--dataset", str(tiny_data)]) == 0
    shown = capsys.readouterr().out
    with (run.folder / "likelihood.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "of another dialogue"]
    right = sum(float(row["reference"]) > float(row["wrong"]) for row in rows) / 5
    assert len(rows) == 5 and "of another dialogue (n = 5)" in shown and f"{right:.0%} [" in shown
    assert cli.main(["likelihood", str(run.folder), "--dataset", "sample"]) == 1
    assert "not the data that" in capsys.readouterr().err


def test_a_name_finds_all_seeds_and_those_with_weights_alone_are_used(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path)
    method = tmp_path / "reference" / "tiny" / "full"
    shutil.copytree(run.folder, method / "seed-0", ignore=shutil.ignore_patterns("model"))
    shutil.copytree(run.folder, method / "seed-1")
    shutil.copytree(run.folder, method / "seed-2.partial")
    found = trained.find_runs(method.relative_to(tmp_path / "reference"))
    assert [one.folder.name for one in found] == ["seed-0", "seed-1"]
    assert [one.folder.name for one in trained.find_trained(method)] == ["seed-1"]
    assert [one.folder for one in trained.find_runs(method / "seed-0")] == [method / "seed-0"]
    (tmp_path / "dialogue.txt").write_text("#Person1#: Hello Ann.", encoding="utf-8")
    assert cli.main(["summarize", "tiny/full", str(tmp_path / "dialogue.txt")]) == 0
    (tmp_path / "tiny" / "full").mkdir(parents=True)
    shutil.copytree(run.folder, tmp_path / "tiny" / "full" / "seed-3")
    assert [one.folder.name for one in trained.find_runs(Path("tiny/full"))] == ["seed-3"]
    own = shutil.copytree(run.folder, tmp_path / "tiny-my-data-0a1b2c" / "full" / "seed-0")
    assert [one.folder for one in trained.find_runs(Path("tiny-my-data/full"))] == [own]
    shutil.copytree(run.folder, tmp_path / "tiny-my-data-ffffff" / "full" / "seed-0")
    capsys.readouterr()
    for name, said in (("tiny/nothing", "no run"), ("tiny-my-data/full", "tiny-my-data-0a1b2c, tiny-my-data-ffffff")):
        assert cli.main(["summarize", name, "-"]) == 1
        assert said in capsys.readouterr().err
