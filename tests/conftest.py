"""The environment of all tests, and fixtures that make what several of them need once."""

import functools
import gc
import getpass
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # each of some fifty processes would compile torch anew, for 15 s
    sys.pycache_prefix = str(Path(tempfile.gettempdir()) / f"bytecode-of-tests-{getpass.getuser()}")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    sys.dont_write_bytecode = False
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # subprocesses too: idle threads wait busily
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # a card computes in bf16; the tests that need one say how
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    os.environ["TRITON_INTERPRET"] = "1"  # runs kernels on the CPU; read when Triton is imported
os.environ["ONEDNN_MAX_CPU_ISA"] = (
    "AVX2"  # in fp32 wherever the tests run, their subprocesses too: tolerances are tight
)

# jsonschema builds a grammar for addresses that no notebook has, for seconds, in whatever process imports nbformat.
sys.modules["rfc3987_syntax"] = None


def pytest_sessionstart(session):
    """The process that hands tests out to others imports nothing that is heavy, and so do these functions."""
    if "PYTEST_XDIST_WORKER" in os.environ or not session.config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)
        gc.disable()  # until what is imported is left out of it, see below


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process waits for one of them at the end."""
    longest = ("lab", "set_up", "two_processes", "notebooks", "snippets", "methods", "documents")
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in longest)


def pytest_collection_finish():
    """Leave what is imported out of garbage collection: each run collects three times, and would look at all of it."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A folder by its name, filled by the first of all workers that asks for it."""
    from filelock import FileLock

    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once"
    place.mkdir(exist_ok=True)

    def folder(name, fill):
        with FileLock(place / f"{name}.lock"):
            if not (place / name).exists():
                partial = place / f"{name}.{os.getpid()}"
                partial.mkdir()
                fill(partial)
                partial.rename(place / name)
        return place / name

    return folder


@pytest.fixture(scope="session")
def tiny_data(once):
    from helpers import tiny_rows, write_jsonl

    def fill(folder):
        write_jsonl(folder / "train.jsonl", tiny_rows(16))
        write_jsonl(folder / "validation.jsonl", tiny_rows(4, start=16))
        write_jsonl(folder / "test.jsonl", tiny_rows(5, references=3, start=20))

    return once("tiny_data", fill)


@pytest.fixture(scope="session")
def tiny_models(once):
    """Folders with a tiny random model each: {"t5": ..., "llama": ...}."""
    from helpers import save_tiny

    return {family: once(f"tiny_{family}", partial(save_tiny, family)) for family in ("t5", "llama")}


@pytest.fixture(scope="session")
def made_once(once, tiny_models, tiny_data):
    """Finished runs of the tiny experiment: made by the first who asks, given to each as a copy of his own."""
    from helpers import tiny_experiment

    from dialogue_summarization import runs, study
    from dialogue_summarization.experiments import METHODS

    def copy(family, method, outputs):
        def fill(folder):
            study.run(tiny_experiment(tiny_models[family], tiny_data), METHODS[method], outputs=folder)

        whole = once(f"run_{family}_{method}", fill)
        shutil.copytree(whole, outputs, dirs_exist_ok=True)
        return runs.read(outputs / "tiny" / method / "seed-0")

    return copy


@pytest.fixture(scope="session")
def sources():
    """`data.load_source` that remembers what it has read."""
    from dialogue_summarization import data

    return functools.cache(data.load_source)


@pytest.fixture
def read_once(sources, monkeypatch):
    """For tests of data that no test changes: DialogSum takes more than a second each time that it is read."""
    from dialogue_summarization import data

    monkeypatch.setattr(data, "load_source", sources)


@pytest.fixture(params=["t5", "llama"])
def family_name(request):
    return request.param


@pytest.fixture
def tiny(family_name, tiny_models, tiny_data):
    """An experiment that trains in a second, for each family."""
    from helpers import tiny_experiment

    return tiny_experiment(tiny_models[family_name], tiny_data)


@pytest.fixture
def register(monkeypatch):
    """Make an experiment known by name."""
    from dialogue_summarization import experiments

    def add(experiment):
        monkeypatch.setitem(experiments.EXPERIMENTS, experiment.name, experiment)
        return experiment

    return add
