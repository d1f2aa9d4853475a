"""What is damaged is named and set aside, and the run goes on; a run goes on after a full disk."""

import contextlib
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import safetensors
import torch
from helpers import interrupt, save_tiny, tiny_experiment

from dialogue_summarization import models, packaged, runs, study
from dialogue_summarization.errors import ModelError, RecordError, UserError
from dialogue_summarization.experiments import METHODS

FULL_DISK = (
    UserError,
    OSError,
    RuntimeError,
    safetensors.SafetensorError,
)  # ours, the system's, PyTorch's, safetensors'


def make(experiment, method, outputs):
    return study.run(experiment, METHODS[method], outputs=outputs)


def weights(run):
    return next(run.weights.glob("*.safetensors")).read_bytes()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.fixture(scope="module")
def interrupted(tiny_models, tiny_data, made_once, tmp_path_factory):
    """An experiment, finished runs of it, and a run interrupted in its 7th step: checkpoint 4 is its best, 6 its last.

    The interrupted one is of a second folder of outputs.
    """
    experiment = tiny_experiment(tiny_models["llama"], tiny_data)
    done = {name: made_once("llama", name, tmp_path_factory.mktemp("done")) for name in ("full", "lora-balanced")}
    outputs = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        interrupt(patch, 7)
        make(experiment, "full", outputs)
    checkpoints = outputs / "tiny" / "full" / "seed-0.partial" / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    return experiment, done, outputs


@pytest.mark.parametrize(
    "number, name, harm, goes_on",
    [
        (6, "model.safetensors", cut, "checkpoint-4"),
        (6, "optimizer.pt", flip, "checkpoint-4"),
        (6, "trainer_state.json", remove, "checkpoint-4"),  # Trainer's last file: killed while it saved
        (4, "model.safetensors", cut, None),  # the best: the last is of no use without it
        (4, "", None, "checkpoint-6"),  # nothing is damaged, but everything is in another folder
    ],
)
def test_a_damaged_checkpoint_is_set_aside(interrupted, tmp_path, capsys, number, name, harm, goes_on):
    experiment, done, outputs = interrupted
    outputs = shutil.copytree(outputs, tmp_path / "outputs")
    place = outputs / "tiny" / "full" / "seed-0.partial"
    if harm:
        harm(place / "checkpoints" / f"checkpoint-{number}" / name)
    capsys.readouterr()
    run = make(experiment, "full", outputs)
    printed = capsys.readouterr().out
    assert (f"set aside as checkpoint-{number}.damaged" in printed and name in printed) == bool(harm)
    assert (f"going on from {goes_on}" in printed) if goes_on else ("going on" not in printed)
    assert weights(run) == weights(done["full"]) and not list(run.folder.glob("*.damaged"))


def test_a_damaged_model_of_an_unfinished_run_is_trained_again(interrupted, tmp_path, capsys):
    experiment, done, outputs = interrupted
    outputs = shutil.copytree(outputs, tmp_path / "outputs")
    model = shutil.copytree(done["full"].weights, outputs / "tiny" / "full" / "seed-0.partial" / "model")
    cut(model / "model.safetensors")
    run = make(experiment, "full", outputs)
    printed = capsys.readouterr().out
    assert "model.safetensors is damaged" in printed and "going on from checkpoint-6" in printed
    assert weights(run) == weights(done["full"])


@pytest.mark.parametrize("method", ["full", "lora-balanced"])
@pytest.mark.parametrize("harm", [cut, remove])
def test_damaged_weights_of_a_finished_run_are_named(interrupted, tmp_path, method, harm):
    experiment, done, _ = interrupted
    folder = shutil.copytree(done[method].weights, tmp_path / done[method].weights.name)
    file = next(folder.glob("*.safetensors"))
    harm(file)
    with pytest.raises(ModelError, match=file.name if harm is cut else "safetensors") as caught:
        models.load_model(experiment, folder)
    assert str(folder) in str(caught.value)


def test_pickled_weights_are_refused(interrupted, tmp_path):
    experiment, done, _ = interrupted
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return ran.touch, ()

    for method, name in (("full", "pytorch_model.bin"), ("lora-balanced", "adapter_model.bin")):
        folder = shutil.copytree(done[method].weights, tmp_path / method)
        next(folder.glob("*.safetensors")).unlink()
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ModelError, match="safetensors"):
            models.load_model(experiment, folder)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_objects_in_a_checkpoint_are_refused(interrupted, tmp_path, name):
    experiment, _, outputs = interrupted
    outputs, ran = shutil.copytree(outputs, tmp_path / "outputs"), tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    checkpoint = outputs / "tiny" / "full" / "seed-0.partial" / "checkpoints" / "checkpoint-6"
    torch.save(Bomb(), checkpoint / name)
    with pytest.raises(ModelError, match=r"(?s)checkpoint-6 is not read.*Remove the folder"):
        make(experiment, "full", outputs)
    assert not ran.exists()


def test_a_damaged_conversion_is_made_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packaged.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setattr(packaged, "convert", lambda _, folder: save_tiny("llama", folder))
    folder = packaged.folder.__wrapped__()
    whole = (folder / "model.safetensors").read_bytes()
    for harm in (cut, remove):
        harm(folder / "model.safetensors")
        assert packaged.folder.__wrapped__() == folder
        assert "is damaged: set aside as" in capsys.readouterr().out
        assert (folder / "model.safetensors").read_bytes() == whole
    assert packaged.folder.__wrapped__() == folder and not capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.json", "predictions.csv", "scores.csv"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe", b"\0" * 64])
def test_a_damaged_record_is_named(interrupted, tmp_path, name, content):
    _, done, _ = interrupted
    folder = tmp_path / "outputs" / "tiny" / "full" / "seed-0"
    shutil.copytree(done["full"].folder, folder, ignore=shutil.ignore_patterns("model"))
    if content is None:
        cut(folder / name)
        if name == "predictions.csv":  # what is left may be whole rows: then ids are compared, in module `report`
            with (folder / name).open("a") as file:
                file.write('"d_9"\n')
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(RecordError, match=r"Move (the|its) folder away") as caught:
        runs.read(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(RecordError):
        runs.collect("tiny", tmp_path / "outputs")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_a_full_disk_is_an_error_and_the_run_goes_on(interrupted, tmp_path, capsys):
    import resource

    experiment, done, _ = interrupted
    before = make(experiment, "zero-shot", tmp_path)
    kept = {path: path.read_bytes() for path in before.folder.iterdir()}
    size = (done["full"].weights / "model.safetensors").stat().st_size
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The configuration, the checkpoint's weights, and its optimizer with two moments a weight do not fit.
    for limit in (100, size // 2, size * 3 // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, whole[1]))
        try:
            with pytest.raises(FULL_DISK):
                make(experiment, "full", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, whole)
    assert {path: path.read_bytes() for path in before.folder.iterdir()} == kept
    capsys.readouterr()
    run = make(experiment, "full", tmp_path)
    assert weights(run) == weights(done["full"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and what makes it larger."""

    def mount(size, *more):
        line = ["mount", "-t", "tmpfs", "-o", ",".join([*more, f"size={size}"]), "tmpfs", str(tmp_path / "disk")]
        return subprocess.run(line, capture_output=True, text=True)

    (tmp_path / "disk").mkdir()
    if sys.platform != "linux" or mount("1m").returncode:
        pytest.skip("needs Linux, and the right to mount a tmpfs")
    yield tmp_path / "disk", lambda size: mount(size, "remount")
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_a_disk_that_is_full_in_a_run_is_an_error_and_the_run_goes_on(interrupted, small_disk):
    experiment, done, _ = interrupted
    disk, enlarge = small_disk
    before = make(experiment, "zero-shot", disk)
    kept = {path: path.read_bytes() for path in before.folder.iterdir()}
    size = (done["full"].weights / "model.safetensors").stat().st_size
    for room in (size // 2, size * 2, size * 4):  # no weights, no optimizer, no second checkpoint
        enlarge(sum(map(len, kept.values())) + room)
        with pytest.raises(FULL_DISK):
            make(experiment, "full", disk)
        assert {path: path.read_bytes() for path in before.folder.iterdir()} == kept
    enlarge("64m")
    assert weights(make(experiment, "full", disk)) == weights(done["full"])
