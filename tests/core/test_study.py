"""A run is made once, recorded whole, found again, and goes on where it was interrupted."""

import errno
import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import safetensors
import torch
from helpers import interrupt, tiny_experiment, tiny_model, tiny_rows, with_data
from rouge_score import rouge_scorer

from dialogue_summarization import data, experiments, hardware, hub, report, runs, study, training
from dialogue_summarization.errors import RecordError
from dialogue_summarization.evaluation import comparison, systems
from dialogue_summarization.experiments import METHODS
from dialogue_summarization.generation import summarize
from dialogue_summarization.methods.table import FURTHER_METHODS

FILES = {"config.json", "environment.json", "metrics.json", "predictions.csv", "scores.csv"}
TRAINED = {"training_log.csv", "tensorboard"}
RUNS = {"zero-shot": set(), "full": TRAINED | {"model"}, "lora-balanced": TRAINED | {"adapter"}}


def make(experiment, method, outputs, **more):
    return study.run(experiment, experiments.method(method), outputs=outputs, **more)


def weights(run):
    return next(run.weights.glob("*.safetensors")).read_bytes()


def texts(run):
    return run.predictions["prediction"].tolist()


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["t5", "llama"])
def made(request, tiny_models, tiny_data, tmp_path_factory):
    """Finished runs of a model and data in the user's home."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_models[request.param], home / "model")
    shutil.copytree(tiny_data, home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USERPROFILE", str(home))
        done = {method: make(tiny_experiment("~/model", "~/data"), method, home / "outputs") for method in RUNS}
    return home, done


@pytest.fixture
def finished(made, tmp_path):
    """Their experiment, and the same records in a folder of their own."""
    experiment = tiny_experiment(made[0] / "model", made[0] / "data")
    return experiment, shutil.copytree(made[0] / "outputs", tmp_path / "outputs")


@pytest.mark.parametrize("method", RUNS)
def test_a_record_has_what_the_design_says(made, method):
    run, baseline, trained = made[1][method], made[1]["zero-shot"], method != "zero-shot"
    assert run.folder == made[0] / "outputs" / "tiny" / method / "seed-0"
    assert names(run.folder) == FILES | RUNS[method] and names(run.folder.parent) == {"seed-0"}
    expected = "rouge1 rouge2 rougeL rougeLsum dialogues references generate_seconds parameters trainable_parameters"
    expected += " truncated_dialogues"
    expected += trained * " train_seconds train_samples_per_second" + (method == "lora-balanced") * " adapter_bytes"
    assert set(run.metrics) - {"peak_memory_bytes", "generate_memory_bytes"} == set(expected.split())
    assert all(type(value) in (int, float) for value in run.metrics.values())
    assert run.predictions.drop(columns="prediction").to_dict("list") == {"id": [f"d_{n}" for n in range(20, 25)]}
    assert (texts(run) != texts(baseline)) == trained
    assert "|refs:mean3|lsum:sentences|n:5|" in run.environment["signature"] and "data" not in run.environment
    if trained:
        assert list(run.log) == ["step", "epoch", "loss", "eval_loss", "learning_rate", "seconds"]
        assert run.log["step"].max() == 8 and run.log["eval_loss"].notna().sum() == 2
    wanted = scores_by_rouge_score(texts(run))
    for name in wanted:
        assert run.metrics[name] == pytest.approx(wanted[name].mean(), abs=1e-6)
    table = pd.read_csv(run.folder / "scores.csv")
    assert table["id"].tolist() == run.scores.index.tolist() == [f"d_{n}" for n in range(20, 25)]
    assert list(table) == ["id", *wanted] and list(run.scores) == list(wanted)
    for name in wanted:
        assert table[name].tolist() == run.scores[name].tolist() == pytest.approx(wanted[name].tolist(), abs=1e-6)


def scores_by_rouge_score(predictions):
    """Of each tiny test dialogue the mean over its three references; a sentence per line, as ROUGE-Lsum wants it."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    references = [row["summary"] for row in tiny_rows(5, 3, start=20)]
    pairs = [(reference, predictions[number // 3]) for number, reference in enumerate(references)]
    rows = [scorer.score(*(re.sub(r"(?<=[.!?])\s+", "\n", text.strip()) for text in pair)) for pair in pairs]
    table = pd.DataFrame([{name: score.fmeasure for name, score in row.items()} for row in rows])
    return table.groupby([number // 3 for number in range(15)]).mean()


def test_a_record_holds_no_path_and_no_text_of_the_data(made):
    told = {line for row in tiny_rows(40) for line in (row["dialogue"] + "\n" + row["summary"]).splitlines()}
    for path in [path for path in (made[0] / "outputs").rglob("*") if path.is_file() and path.suffix != ".safetensors"]:
        text = path.read_bytes().decode("utf-8", "replace")
        assert not [place for place in (made[0], Path.home(), Path.cwd()) if str(place) in text], path
        assert path.name == "predictions.csv" or not [line for line in told if line in text], path


def test_tensorboard_reads_the_curves(made):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = made[1]["full"]
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for tag, column in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        wanted = run.log[run.log[column].notna()]
        assert [event.step for event in events.Scalars(tag)] == wanted["step"].tolist()
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(wanted[column].tolist(), rel=1e-6)


@pytest.mark.parametrize("method", RUNS)
def test_a_finished_run_is_loaded_unless_forced(finished, method, capsys):
    experiment, outputs = finished
    before = {path: path.stat().st_mtime_ns for path in sorted(outputs.rglob("*"))}
    run = make(experiment, method, outputs)
    assert f"loaded from the record of {run.date}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in sorted(outputs.rglob("*"))} == before
    again = make(experiment, method, outputs, force=True)
    assert "loaded" not in capsys.readouterr().out
    assert all((run.folder / name).stat().st_mtime_ns > before[run.folder / name] for name in FILES)
    # The baseline was made before the other runs, and is made again behind them.
    assert texts(again) == texts(run) and names(run.folder) == FILES | RUNS[method]


@pytest.mark.parametrize("made", ["llama"], indirect=True)  # the family changes nothing here
def test_a_record_without_weights_is_replaced_when_that_is_done(finished):
    experiment, outputs = finished
    before = weights(make(experiment, "full", outputs))
    shutil.rmtree(outputs / "tiny" / "full" / "seed-0" / "model")
    again = make(experiment, "full", outputs)
    assert weights(again) == before and names(again.folder.parent) == {"seed-0"}


def with_rate(experiment, rate):
    return replace(experiment, settings={"full": replace(experiment.settings["full"], learning_rate=rate)})


def test_how_many_test_dialogues_were_cut_is_in_the_record_and_the_tables(tiny, tmp_path):
    rows = tiny_rows(5)
    for number in (1, 3):
        rows[number]["dialogue"] += "\n#Person1#: And then?" * 60
    run = make(with_data(tiny, tmp_path / "data", rows), "zero-shot", tmp_path / "outputs")
    assert run.metrics["truncated_dialogues"] == 2
    assert report.results([run])["cut to fit"].tolist() == ["2 of 5"]
    test = data.load_source(str(tmp_path / "data"))["test"]
    assert comparison.leaderboard(systems.of_runs([run], test))["cut to fit"].tolist() == ["2 of 5"]


@pytest.mark.parametrize("made", ["llama"], indirect=True)  # the family changes nothing here
def test_a_drive_without_locks_is_said_and_the_run_is_made(finished, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    run = make(finished[0], "zero-shot", tmp_path / "new")
    assert "the drive has no locks (No locks available)" in capsys.readouterr().out
    assert names(run.folder) == FILES and names(run.folder.parent) == {"seed-0"}


@pytest.mark.parametrize("made", ["llama"], indirect=True)  # the family changes nothing here
@pytest.mark.parametrize("force", [False, True])
def test_a_run_with_other_settings_leaves_a_finished_one_where_it_is_found_again(finished, force, monkeypatch, capsys):
    experiment, outputs = finished
    old = make(experiment, "full", outputs)
    before, other = weights(old), with_rate(experiment, 1e-2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        make(other, "full", outputs, force=force)
    assert runs.read(old.folder).config.key == old.config.key and weights(old) == before  # until the new one is done
    new = make(other, "full", outputs, force=force)
    assert new.folder == old.folder and weights(new) != before
    assert names(new.folder.parent) == {"seed-0", f"seed-0.{old.config.key}"}
    assert f"kept as seed-0.{old.config.key}" in capsys.readouterr().out
    assert [run.config.key for run in runs.collect("tiny", outputs) if run.name == "full"] == [new.config.key]
    monkeypatch.setattr(training.SummarizationTrainer, "train", None)
    for asked, kept in ((experiment, new), (other, old)):
        found = make(asked, "full", outputs)
        assert found.config.key != kept.config.key and (weights(found) == before) == (asked is experiment)
        assert names(found.folder.parent) == {"seed-0", f"seed-0.{kept.config.key}"}


@pytest.mark.parametrize("made", ["llama"], indirect=True)  # the family changes nothing here
def test_a_run_with_other_settings_leaves_the_checkpoints_of_an_interrupted_one(
    finished, tmp_path, monkeypatch, capsys
):
    experiment, other = finished[0], with_rate(finished[0], 1e-2)
    for asked, step in ((experiment, 5), (other, 6)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, step)
            make(asked, "full", tmp_path / "new")
    capsys.readouterr()
    run = make(experiment, "full", tmp_path / "new")
    assert "going on from checkpoint-4" in capsys.readouterr().out
    assert weights(run) == weights(make(experiment, "full", finished[1]))
    make(other, "full", tmp_path / "new")
    assert "going on from checkpoint-5" in capsys.readouterr().out
    assert names(run.folder.parent) == {"seed-0", f"seed-0.{run.config.key}"}


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("made", ["llama"], indirect=True)  # the family changes nothing here
def test_an_unknown_key_is_an_error(finished):
    change(finished[1] / "tiny" / "full" / "seed-0" / "config.json", colour="red")
    with pytest.raises(RecordError, match=r"full.seed-0.config\.json.*colour"):
        make(finished[0], "full", finished[1])


def test_the_key_is_of_what_changes_the_result(tiny, family_name, tmp_path):
    def key(experiment, method="full", seed=0):
        return study.prepare(experiment, experiments.method(method), seed, outputs=tmp_path / "outputs").config.key

    folders = {name: shutil.copytree(getattr(tiny, name), tmp_path / name) for name in ("model", "dataset")}
    moved = replace(tiny, name="other", title="Other", **{name: str(folder) for name, folder in folders.items()})
    keys, full = [key(tiny, method) for method in METHODS | FURTHER_METHODS], tiny.settings["full"]
    keys += [key(tiny, seed=1), key(replace(tiny, max_prompt_tokens=9)), key(replace(tiny, dialogues={"train": 8}))]
    for field, value in asdict(full).items():
        other = {"select_by": "rouge2", "schedule": "linear"}.get(field) or (value or 0) + 1
        keys.append(key(replace(tiny, settings={"full": replace(full, **{field: other})})))
    for field, value in asdict(tiny.generation).items():
        keys.append(key(replace(tiny, generation=replace(tiny.generation, **{field: value + 1}))))
    for file in folders["dataset"].iterdir():
        before = file.read_text()
        file.write_text(before.replace("forgot", "missed", 1))
        keys.append(key(moved))
        file.write_text(before)
    assert key(moved) == key(tiny)
    network = tiny_model(family_name)
    next(network.parameters()).data.view(-1)[0] += 1e-3
    network.save_pretrained(moved.model)
    keys += [key(moved), key(replace(tiny, prompt="{dialogue}\nIn short: "))]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("method", "micro_batch", "averaged"), [("full", 4, 0), ("full", 1, 2), ("lora-balanced", 4, 2)]
)
def test_an_interrupted_run_ends_as_any_other(
    tiny, family_name, tmp_path, monkeypatch, capsys, method, micro_batch, averaged
):
    settings = {name: replace(known, averaged_epochs=averaged) for name, known in tiny.settings.items()}
    experiment = replace(tiny, model=str(shutil.copytree(tiny.model, tmp_path / "dropout")), settings=settings)
    tiny_model(family_name, dropout=0.1).save_pretrained(experiment.model)
    memory = {1: 4, 4: 16}[micro_batch] * hardware.GIB  # of the machine: it holds so many dialogues at once
    size = SimpleNamespace(total=memory, available=16 * hardware.GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: size)
    wanted = make(experiment, method, tmp_path / "undisturbed")
    for step, said in ((3, ""), (4, "going on from checkpoint-2")):  # in the first epoch, then in the second
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, step * 4 // micro_batch)
            make(experiment, method, tmp_path / "disturbed")
        assert said in capsys.readouterr().out
    run = make(experiment, method, tmp_path / "disturbed")
    assert "going on from checkpoint-5" in capsys.readouterr().out
    assert weights(run) == weights(wanted) and texts(run) == texts(wanted)
    assert run.log.drop(columns="seconds").equals(wanted.log.drop(columns="seconds"))
    assert run.log["seconds"].is_monotonic_increasing and run.metrics["train_seconds"] >= run.log["seconds"].max()
    assert names(run.folder) == FILES | RUNS[method] and names(run.folder.parent) == {"seed-0"}


@pytest.mark.parametrize("method", ["full", "lora-balanced", "prefix-tuning", "prompt-tuning"])
def test_a_run_where_a_cpu_computes_in_bf16_keeps_weights_in_fp32(tiny, method, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "precision", lambda: "bf16")
    run = make(tiny, method, tmp_path)
    losses = run.log["loss"].dropna()
    assert run.environment["precision"] == "bf16" and losses.iloc[-1] < losses.iloc[0]
    with safetensors.safe_open(next(run.weights.glob("*.safetensors")), "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    bundle = study.load_run(run)
    before = {name: weight.clone() for name, weight in bundle.model.named_parameters()}
    assert summarize(bundle, [tiny_rows(1)[0]["dialogue"]], tiny.generation, progress=False)
    assert all(torch.equal(weight, before[name]) for name, weight in bundle.model.named_parameters())


@pytest.mark.parametrize("made", ["llama"], indirect=True)  # the family changes nothing here
@pytest.mark.parametrize("place", ["config.json", "training.json", "checkpoints", "metrics.json", ""])
def test_a_run_interrupted_while_it_is_written_goes_on(finished, tmp_path, monkeypatch, place):
    """While a file is moved into its place, checkpoints are removed, or the whole is moved."""

    def stopped(usual, named):
        def call(*some, **more):
            if Path(some[named]).name in (place, f"seed-0.partial{place}"):
                raise KeyboardInterrupt
            return usual(*some, **more)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for owner, name, named in ((os, "replace", 1), (shutil, "rmtree", 0), (Path, "rename", 0)):
            patch.setattr(owner, name, stopped(getattr(owner, name), named))
        make(finished[0], "full", tmp_path / "new")
    if place not in ("config.json", "training.json"):  # behind training
        monkeypatch.setattr(training.SummarizationTrainer, "train", None)
    run = make(finished[0], "full", tmp_path / "new")
    assert weights(run) == weights(make(finished[0], "full", finished[1]))
    assert names(run.folder) == FILES | RUNS["full"] and names(run.folder.parent) == {"seed-0"}


def test_runs_are_collected_in_order_or_from_the_reference(made, tmp_path, monkeypatch):
    def copy(root, method, seed):
        folder = tmp_path / root / "tiny" / method / f"seed-{seed}"
        shutil.copytree(made[1]["full"].folder, folder, ignore=shutil.ignore_patterns("model"))
        change(folder / "config.json", method=method, seed=seed)

    for method, seed in (("mine", 0), ("lora-balanced", 0), ("full", 10), ("full", 9), ("zero-shot", 0)):
        copy("own", method, seed)
    copy("own", "full", "3.partial")
    copy("committed/reference", "full", 0)
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "committed")
    own = runs.collect("tiny", tmp_path / "own")
    listed = " ".join(f"{run.name}/{run.config.seed}" for run in own)
    assert listed == "zero-shot/0 full/9 full/10 lora-balanced/0 mine/0" and not any(run.is_reference for run in own)
    (reference,) = runs.collect("tiny", tmp_path / "empty")
    assert reference.is_reference and reference.weights is None and texts(reference) == texts(made[1]["full"])
    assert runs.collect("unknown", tmp_path / "own") == []


def test_a_record_keeps_what_was_left_out_of_a_hub_data_set(tiny, tmp_path, monkeypatch):
    rows = tiny_rows(4)
    rows[2] |= {"summary": None}
    monkeypatch.setattr(hub, "go_offline_if_silent", lambda: None)
    monkeypatch.setattr(data.datasets, "load_dataset", lambda source: dict.fromkeys(data.SPLITS, rows))
    run = make(replace(tiny, dataset="nobody/talks"), "zero-shot", tmp_path)
    said = "rows without a dialogue or a summary, left out: 1 of 4"
    assert runs.read(run.folder).environment["data"] == dict.fromkeys(data.SPLITS, said)
    assert run.config.dialogues == dict.fromkeys(data.SPLITS, 3)
