"""A run that is killed, at any moment, ends as any other; two processes do not make one run.

`STUDY_KILLS=20 uv run pytest tests/core/test_killed.py` kills at so many moments.
"""

import os
import random
import shutil
import signal
import time

import filelock
import forked
import killed
import pytest
from helpers import tiny_experiment

from dialogue_summarization import runs, study
from dialogue_summarization.commands import cli
from dialogue_summarization.errors import UserError
from dialogue_summarization.experiments import METHODS

KILLS = int(os.environ.get("STUDY_KILLS", "5"))
STEPS, INTERVAL = 8, 4  # of the optimizer, in the whole run and between checkpoints


def in_a_process(*arguments):
    process = forked.process(killed.make, *arguments)
    process.start()
    return process


def result(outputs):
    run = runs.read(outputs / "tiny" / "full" / "seed-0")
    scores = {name: run.metrics[name] for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
    return scores, run.predictions.to_dict("list"), (run.weights / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tiny_models, tiny_data, tmp_path_factory):
    """The experiment, what its run gives, and the run's moments."""
    experiment = tiny_experiment(tiny_models["llama"], tiny_data)
    place = tmp_path_factory.mktemp("undisturbed")
    process = in_a_process(experiment, place / "outputs", place / "told")
    process.join()
    assert process.exitcode == 0
    return experiment, result(place / "outputs"), (place / "told").read_text().splitlines()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_as_any_other(undisturbed, number, tmp_path):
    experiment, wanted, moments = undisturbed
    assert moments.count("training_step") == STEPS and {"generate", "open metrics.partial"} <= set(moments)
    drawn = random.Random(number)
    # A stretch of the run each, so that few kills too meet training, summaries and the record.
    kill_at = 1 + int(len(moments) * (number + drawn.random()) / KILLS)
    told, delay = tmp_path / "told", drawn.choice([0.0, 0.001, 0.01])
    dead = in_a_process(experiment, tmp_path / "outputs", told, kill_at, delay)
    dead.join()
    assert dead.exitcode == -signal.SIGKILL or (delay and dead.exitcode == 0), moments[kill_at - 1]
    again = in_a_process(experiment, tmp_path / "outputs", told)
    again.join()
    assert again.exitcode == 0, moments[kill_at - 1]
    assert result(tmp_path / "outputs") == wanted
    steps = told.read_text().splitlines().count("training_step")
    assert STEPS <= steps <= STEPS + INTERVAL, moments[kill_at - 1]
    assert {path.name for path in (tmp_path / "outputs" / "tiny" / "full").iterdir()} == {"seed-0"}


def test_two_processes_do_not_make_one_run(undisturbed, register, tmp_path, monkeypatch, capsys):
    experiment, wanted, _ = undisturbed
    usual = filelock.FileLock  # which would wait for six seconds
    monkeypatch.setattr(filelock, "FileLock", lambda path, **options: usual(path, **(options | {"timeout": 0.1})))
    outputs, told = tmp_path / "outputs", tmp_path / "told"
    first = in_a_process(experiment, outputs, told)
    while not told.exists() or "training_step" not in told.read_text():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=r"seed-0\.partial.*shut the kernel down"):
        study.prepare(experiment, METHODS["full"], outputs=outputs)  # as notebooks begin
    with pytest.raises(UserError, match="Another process"):
        study.run(experiment, METHODS["full"], outputs=outputs)
    register(experiment)
    assert cli.main(["tiny", "--outputs", str(outputs)]) == 1  # before any notebook
    assert "study: Another process is making the run" in capsys.readouterr().err
    study.run(experiment, METHODS["zero-shot"], outputs=outputs)  # another run is nobody's
    first.kill()
    first.join()
    study.run(experiment, METHODS["full"], outputs=outputs)
    assert result(outputs) == wanted


def test_a_process_holds_its_run_until_it_is_finished(undisturbed, tmp_path):
    experiment = undisturbed[0]
    for _ in range(2):  # a cell run twice
        prepared = study.prepare(experiment, METHODS["zero-shot"], outputs=tmp_path)
    lock = prepared.tmp_dir.with_name("seed-0.partial.lock")
    assert lock.exists()
    study.finish(prepared)
    assert not lock.exists()
    shutil.rmtree(prepared.folder)
    assert study.prepare(experiment, METHODS["zero-shot"], outputs=tmp_path).record is None
