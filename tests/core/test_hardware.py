"""What is decided by the machine, for machines that are not here."""

import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from helpers import tiny_model
from transformers import TrainingArguments

from dialogue_summarization import hardware, study
from dialogue_summarization.acceleration.memory import ModelDims, training_bytes
from dialogue_summarization.errors import ConfigurationError
from dialogue_summarization.experiments import EXPERIMENTS, METHODS, Settings
from dialogue_summarization.training import training_arguments
from measurements import tables

SMOLLM2 = ModelDims(4 * 134_515_008, 134_515_008, 576, 1536, 9, 49_152, 30)


@pytest.fixture
def with_memory(monkeypatch):
    """A machine with so many GiB."""

    def machine(gib):
        size = SimpleNamespace(total=gib * hardware.GIB, available=gib * hardware.GIB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: size)

    return machine


@pytest.mark.parametrize(
    "capability, expected",
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((9, 0), "bf16")],
)
def test_precision_is_the_gpus(monkeypatch, capability, expected):
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # what PyTorch says on a T4
    assert hardware.precision() == expected
    precisions = {kind: hardware.precision_for(tiny_model(kind)) for kind in ("llama", "t5")}
    assert precisions == {"llama": expected, "t5": "fp32" if expected == "fp16" else expected}  # T5 overflows


@pytest.mark.parametrize(("has", "allowed"), [(True, True), (True, False), (False, True)])
def test_precision_is_the_cpus(monkeypatch, has, allowed):
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: allowed)
    assert hardware.precision() == ("bf16" if has and allowed else "fp32")


def test_precision_is_full_without_a_gpu(monkeypatch):
    for kind in ("cpu", "mps"):
        monkeypatch.setattr(hardware, "device", lambda kind=kind: torch.device(kind))
        assert hardware.precision() == "fp32"


def test_a_gpu_is_left_alone_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.device().type == "mps"
    monkeypatch.setattr(hardware, "_CPU_ONLY", True)
    assert hardware.device().type == "cpu"


def test_hours_on_a_cpu_are_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    sizes = {"train": 12_460, "validation": 500, "test": 500}
    study_experiment, quickstart = EXPERIMENTS["smollm2-dialogsum"], EXPERIMENTS["quickstart"]
    for name in quickstart.runs:  # minutes
        study.require_time(quickstart, METHODS[name], {"train": 128, "validation": 32, "test": 48})
    # 1.3 s x 12,460 x 6, and (1 + 4 beams) / 2 s x 500
    with pytest.raises(
        ConfigurationError, match=r"smollm2-dialogsum, full: about 27 hours on this CPU.*--yes.*STUDY_YES"
    ):
        study.require_time(study_experiment, METHODS["full"], sizes)
    with pytest.raises(ConfigurationError, match="zero-shot: about 21 minutes"):
        study.require_time(study_experiment, METHODS["zero-shot"], sizes)
    monkeypatch.setenv("STUDY_YES", "1")
    study.require_time(study_experiment, METHODS["full"], sizes)
    monkeypatch.delenv("STUDY_YES")
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cuda"))
    study.require_time(study_experiment, METHODS["full"], sizes)


@pytest.mark.parametrize("gib", [4, 6, 8, 15, 24, 80])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 32, 48, 64])
def test_the_effective_batch_is_kept_whatever_the_memory(with_memory, tmp_path, gib, batch_size):
    with_memory(gib)
    arguments = training_arguments(Settings(1e-4, batch_size=batch_size), tmp_path)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == batch_size


@pytest.mark.parametrize(("gib", "at_once"), [(6, 1), (12, 4), (64, 8)])
def test_a_cpu_holds_few_and_no_more_than_its_memory(with_memory, tmp_path, gib, at_once):
    with_memory(gib)
    arguments = training_arguments(Settings(1e-4, batch_size=32), tmp_path)
    assert arguments.per_device_train_batch_size == at_once
    assert arguments.gradient_accumulation_steps == 32 // at_once
    assert 0 < training_bytes(at_once, SMOLLM2, tables.LENGTHS["smollm2"]) < gib * hardware.GIB


def test_one_gpu_unless_asked_for_more(monkeypatch, tmp_path):
    usual = TrainingArguments.__post_init__

    def with_two_gpus(self):
        usual(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_two_gpus)
    assert TrainingArguments(str(tmp_path)).n_gpu == 2
    assert training_arguments(Settings(1e-4), tmp_path).n_gpu == 1


@pytest.mark.parametrize("name", ["smollm2-dialogsum", "flan-t5-base-dialogsum"])
def test_full_experiments_train_on_everything(name, tmp_path):
    settings = EXPERIMENTS[name].settings["full"]
    assert EXPERIMENTS[name].dialogues == {} and settings.epochs >= 3
    assert training_arguments(settings, tmp_path).max_steps == -1


def test_peak_memory_sees_what_was_allocated():
    with hardware.Meter() as small:
        pass
    with hardware.Meter() as large:
        torch.ones(200_000_000).sum()
    # Of 800 MB: meanwhile the process may give back what others used.
    assert large.peak_bytes - small.peak_bytes > 500_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux alone")
def test_peak_memory_leaves_out_what_was_freed_before():
    pieces = [torch.ones(16_000) for _ in range(12_500)]  # 800 MB in pieces that the C library keeps when freed
    with hardware.Meter() as before:
        pass
    last = pieces[-1]  # at the end of the heap
    pieces.append(pieces)  # a circle
    del pieces
    with hardware.Meter() as after:
        assert last.sum() == 16_000
    assert before.peak_bytes - after.peak_bytes > 600_000_000


def nvml(readings):
    """NVIDIA's management library, whose energy counter shows these millijoules."""
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: readings[handle].pop(0),
    )


def test_energy_is_what_the_counter_of_this_gpu_went_on_by(monkeypatch):
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cpu"))
    for name, value in (("is_available", True), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="7"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml({"GPU-7": [12_000, 13_540]}))
    with hardware.Meter() as meter:
        pass
    assert meter.joules == 1.5
    monkeypatch.setitem(sys.modules, "pynvml", nvml({}))  # no such counter
    with hardware.Meter() as meter:
        pass
    assert meter.joules is None


def test_energy_without_a_gpu_is_unknown():
    with hardware.Meter() as meter:
        pass
    assert meter.joules is None and meter.seconds >= 0
