"""Averaged weights, choices among draws, and the data set to train on; of tiny runs with real records."""

import json

import forked
import pytest
import torch
from helpers import tiny_experiment
from safetensors.torch import load_file

from dialogue_summarization import data, experiments, models, study
from measurements import __main__ as command
from measurements import distillation

DRAWN = ["Ann waits.", "Ben sells a bike.", "Ben sells a red bike."]


@pytest.fixture
def two_runs(tiny_models, tiny_data, tmp_path):
    experiment = tiny_experiment(tiny_models["llama"], tiny_data)
    return [study.run(experiment, experiments.method("full"), seed, outputs=tmp_path / "runs") for seed in (0, 1)]


def test_a_choice_by_reference_and_one_by_agreement():
    assert distillation.nearest(DRAWN, ["Ann waits for Ben."]) == "Ann waits."
    assert distillation.nearest(DRAWN, ["Ben has a red bike."]) == "Ben sells a red bike."


def test_two_runs_draw_average_and_hand_on_a_data_set(two_runs, tiny_data, tmp_path, monkeypatch):
    forked.serve()  # its processes need not import everything anew
    monkeypatch.setattr(distillation.multiprocessing, "get_context", {"spawn": forked.processes}.get)
    folders = [str(run.folder) for run in two_runs]
    assert command.main(["distill", str(tiny_data), str(tmp_path / "out"), *folders]) == 0
    one, two = (load_file(run.weights / "model.safetensors") for run in two_runs)
    mean = load_file(tmp_path / "out" / "average" / "model.safetensors")
    assert list(mean) == list(one) and any(not torch.equal(one[name], two[name]) for name in one)
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (one[name] + two[name]) / 2)
    candidates = json.loads((tmp_path / "out" / "candidates.json").read_text("utf-8"))
    assert {len(texts) for texts in candidates} == {2 * distillation.SAMPLES}
    source = data.load_source(str(tiny_data))
    for choice in distillation.CHOICES:
        student = tiny_experiment(tmp_path / "out" / "average", tmp_path / "out" / choice)
        written = data.load(student)
        for split in ("validation", "test"):
            assert written[split]["summaries"] == source[split]["summaries"]
        assert written["train"]["dialogue"] == source["train"]["dialogue"]
        both = zip(written["train"]["summaries"], source["train"]["summaries"], candidates, strict=True)
        assert all(more[:-1] == own and more[-1] in texts for more, own, texts in both)
    assert models.load_model(student).model.num_parameters() == sum(map(torch.numel, mean.values()))


def test_a_run_draws_for_the_dialogues_that_it_has_not_learned(tiny_models, tiny_data, tmp_path, capsys):
    assert command.main(["halve", str(tiny_data), str(tmp_path / "halves")]) == 0
    whole = data.load_source(str(tiny_data))
    even, odd = (data.load_source(str(tmp_path / "halves" / name)) for name in ("even", "odd"))
    assert sorted([*even["train"]["id"], *odd["train"]["id"]]) == sorted(whole["train"]["id"])
    assert even["test"]["summaries"] == whole["test"]["summaries"]
    experiment = tiny_experiment(tiny_models["llama"], tmp_path / "halves" / "even")
    run = study.run(experiment, experiments.method("full"), 0, outputs=tmp_path / "runs")
    assert distillation.not_learned(run, whole["train"]["dialogue"]) == list(odd["train"]["dialogue"])
    assert distillation.not_learned(run, even["train"]["dialogue"]) == even["train"]["dialogue"]
    assert command.main(["headroom", str(tiny_data), str(run.folder)]) == 0
    assert "rougeL" in capsys.readouterr().out
