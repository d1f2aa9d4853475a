"""Two processes make the run that one makes, and say what happened when one of them does not."""

import json
import signal

import forked
import pandas as pd
import pytest
import torch
import two_processes
from helpers import tiny_rows, write_jsonl
from safetensors.torch import load_file

from dialogue_summarization import experiments, models, runs, study
from dialogue_summarization.acceleration.trainer import per_process_batch_size
from dialogue_summarization.commands import cli, execution
from dialogue_summarization.distributed import processes
from dialogue_summarization.errors import NotEnoughMemory, UserError
from measurements import __main__ as measurements
from measurements import short_training, tables


@pytest.fixture(scope="module")
def places(tiny_models, tmp_path_factory):
    """Models, data and a folder: 17 dialogues are 8 steps of 2 and one, of which one process gets nothing."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "data").mkdir()
    splits = {"train": tiny_rows(17), "validation": tiny_rows(5, start=17), "test": tiny_rows(5, 3, 30)}
    for split, rows in splits.items():
        write_jsonl(folder / "data" / f"{split}.jsonl", rows)
    return tiny_models["llama"], tiny_models["t5"], folder / "data", folder


@pytest.fixture(scope="module")
def said(places):
    """What is said when one of two processes is killed; runs that were finished before are kept."""
    with forked.launched(), pytest.raises(UserError) as raised:
        processes.launch(2, two_processes.main, *places)
    return str(raised.value)


def same(ours, theirs):
    """Two records say the same within rounding, but for seconds and memory."""
    assert (ours.config.key, list(ours.predictions["prediction"])) == (
        theirs.config.key, list(theirs.predictions["prediction"])
    )  # fmt: skip
    pd.testing.assert_frame_equal(ours.log.drop(columns="seconds"), theirs.log.drop(columns="seconds"), rtol=1e-5)
    pd.testing.assert_frame_equal(ours.scores, theirs.scores)
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "parameters", "trainable_parameters"):
        assert ours.metrics[name] == theirs.metrics[name]
    weights, expected = (load_file(next(run.weights.glob("*.safetensors"))) for run in (ours, theirs))
    assert set(weights) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-5)


def by_one(experiment, method, folder):
    return study.run(experiment, experiments.method(method), outputs=folder / "one")


def read(folder):
    (place,) = folder.glob("*/full/seed-0")
    return runs.read(place)


def test_a_killed_process_is_named_and_the_same_command_finishes(places, said, monkeypatch, capfd):
    llama, _, dataset, folder = places
    assert "Process 2 of 2 was ended by SIGKILL" in said and "same command resumes" in said
    executed, handler = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(execution, "execute", lambda sources, folder, _: executed.extend(path.stem for path in sources))
    line = ["smollm2-dialogsum", "--runs", ",".join(two_processes.METHODS), "--gpus", "2", "--model", str(llama)]
    with forked.launched():
        assert cli.main([*line, "--dataset", str(dataset), "--outputs", str(folder / "two")]) == 0
    assert executed == ["02_full_fine_tuning", "03_lora", "04_evaluation"]
    assert signal.getsignal(signal.SIGINT) == handler
    assert capfd.readouterr().out.count("full: going on from checkpoint-") == 1  # the main process alone prints
    experiment = two_processes.study_experiment(llama, dataset)
    for method in two_processes.METHODS:
        run = runs.read(folder / "two" / experiment.name / method / "seed-0")
        same(run, by_one(experiment, method, folder))
        assert run.environment["processes"] == 2 and run.environment["device"].startswith("2 x CPU")
        assert not [path for path in run.folder.parent.iterdir() if path != run.folder]
    assert "processes" not in runs.environment()


def test_gradients_averaged_after_a_step_are_those_of_one_process(places, said):
    llama, _, dataset, folder = places
    with two_processes.as_if_compiled():
        one = by_one(two_processes.experiment(llama, dataset), "full", folder / "compiled")
    same(read(folder / "compiled"), one)


def test_sharded_training_is_that_of_one_process_and_leaves_a_whole_model(places, said):
    _, t5, dataset, folder = places
    experiment = two_processes.experiment(t5, dataset)
    run = read(folder / "sharded")
    same(run, by_one(experiment, "full", folder))
    trained, base = models.load_model(experiment, run.weights), models.load_model(experiment)
    assert trained.model.num_parameters() == base.model.num_parameters()


def test_epochs_are_averaged_where_weights_are_sharded(places, said):
    _, t5, dataset, folder = places
    experiment = two_processes.experiment(t5, dataset, averaged_epochs=2)
    same(read(folder / "sharded-mean"), by_one(experiment, "full", folder / "mean"))


def test_one_process_resumes_what_two_began(places, said, capsys):
    llama, _, dataset, folder = places
    experiment = two_processes.experiment(llama, dataset, averaged_epochs=2)
    run = study.run(experiment, experiments.method("full"), outputs=folder / "other-number")
    assert f"going on from checkpoint-{two_processes.STOPPED_AT - 1}" in capsys.readouterr().out
    same(run, by_one(experiment, "full", folder / "mean"))


def test_what_the_user_can_mend_is_said_once(capfd):
    with pytest.raises(UserError, match=r"^There is no run 'bert'\."):
        processes.launch(2, experiments.method, "bert")
    assert "Traceback" not in capfd.readouterr().err


def test_a_batch_that_cannot_be_divided_is_said_at_once(capsys):
    assert cli.main(["quickstart", "--gpus", "3", "--runs", "full"]) == 1
    assert "4 dialogues cannot be divided among 3 processes" in capsys.readouterr().err
    assert per_process_batch_size(32, 8) == 4


def test_trainings_are_measured_by_two_as_by_one(places, said):
    llama, _, dataset, folder = places
    two_processes.measure(llama, dataset, folder / "measured")
    records = tables.load(folder / "measured")
    names = ("smollm2-full-plain", "smollm2-lora", "t5-xl-full")
    assert set(records) == {
        *names, *(f"{name}-gpus2" for name in (*names, "generate-beams1")), "generate-beams1",
        "smollm2-full-plain-batch2",
    }  # fmt: skip
    for name in names:
        one, two = records[name], records[f"{name}-gpus2"]
        assert len(one["losses"]) == {"smollm2-full-plain": 12}.get(name, 6)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert [one["gpus"], two["gpus"], one["sharded"], two["sharded"]] == [1, 2, False, name == "t5-xl-full"]
        assert one["peak_memory_bytes"] > 0 and two["peak_memory_bytes"] > 0
        assert one["parameters"] == two["parameters"] and one["batch_size"] == two["batch_size"] == 4
        assert "all_reduce_milliseconds" not in one
        assert ("all_reduce_milliseconds" in two) == (not two["sharded"])
    table = tables.several_gpus(records)
    assert list(table["GPUs"]) == [2, 2, 2] and (table["speed-up"] != "–").all()
    assert list(table["one GPU, batch / n (ms)"] == "–") == [False, True, True]


def test_memory_that_a_capped_gpu_lacks_is_recorded(places, monkeypatch, tmp_path):
    def build(name, method):
        raise NotEnoughMemory("Out of memory at step 1: not one dialogue can be trained on.")

    monkeypatch.setattr(short_training, "build", build)
    line = ["t5-xl-full", "--dataset", str(places[2]), "--outputs", str(tmp_path)]
    assert measurements.main(line) == 0
    record = json.loads((tmp_path / "t5-xl-full.json").read_text("utf-8"))
    assert record["failed"].startswith("NotEnoughMemory: Out of memory at step 1") and record["gib"] == 42
