"""What is decided by the machine, for machines that are not here."""

import sys

import pytest
import torch
from conftest import tiny_experiment, tiny_rows
from test_memory import smollm2
from transformers import TrainingArguments

from dialogue_summarization import data, fitting, hardware, measured, memory, models
from dialogue_summarization.experiments import EXPERIMENTS, Settings
from dialogue_summarization.training import encode, training_arguments


@pytest.fixture
def model(tiny_models, tiny_data):
    return models.load(tiny_experiment(tiny_models["llama"], tiny_data))


@pytest.fixture
def rows(model, tiny_data):
    return encode(data.load_source(str(tiny_data))["train"], model.family)


@pytest.mark.parametrize(
    "capability, expected", [((7, 5), "fp32"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((9, 0), "bf16")]
)
def test_precision_is_the_cards(monkeypatch, capability, expected):
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # what PyTorch says on a T4
    assert hardware.precision() == expected


@pytest.mark.parametrize(("has", "allowed"), [(True, True), (True, False), (False, True)])
def test_precision_is_the_cpus(monkeypatch, has, allowed):
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: allowed)
    assert hardware.precision() == ("bf16" if has and allowed else "fp32")
    assert not hardware.fast_steps()


def test_precision_is_full_without_a_card(monkeypatch):
    for kind in ("cpu", "mps"):
        monkeypatch.setattr(hardware, "device", lambda kind=kind: torch.device(kind))
        assert hardware.precision() == "fp32"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("gib", [4, 6, 8, 15, 24, 80])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 32, 48, 64])
def test_the_effective_batch_is_kept_whatever_the_memory(monkeypatch, model, rows, kind, gib, batch_size):
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    monkeypatch.setattr(hardware, "memory", lambda: gib * hardware.GIB)
    plan = fitting.fits(batch_size, model.network, rows)
    assert plan.micro_batch * plan.accumulation == batch_size


@pytest.mark.parametrize(("gib", "at_once"), [(6, 2), (12, 4), (64, 8)])
def test_a_cpu_holds_few_and_no_more_than_its_memory(monkeypatch, model, rows, gib, at_once):
    monkeypatch.setattr(hardware, "memory", lambda: gib * hardware.GIB)
    monkeypatch.setattr(memory, "shape_of", lambda _: smollm2())
    monkeypatch.setattr(memory, "lengths_of", lambda _: measured.LENGTHS["smollm2"])
    plan = fitting.fits(32, model.network, rows)
    assert (plan.micro_batch, plan.accumulation, plan.checkpointing) == (at_once, 32 // at_once, False)
    assert 0 < plan.bytes < gib * hardware.GIB


def test_one_card_unless_asked_for_more(monkeypatch, tmp_path, model, rows):
    usual = TrainingArguments.__post_init__

    def with_two_cards(self):
        usual(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_two_cards)
    assert TrainingArguments(str(tmp_path)).n_gpu == 2
    assert training_arguments(Settings(1e-4), tmp_path, model, rows).n_gpu == 1


@pytest.mark.parametrize("name", ["smollm2-dialogsum", "flan-t5-base-dialogsum"])
def test_full_experiments_train_on_everything(name, tmp_path, model, rows):
    settings = EXPERIMENTS[name].settings["full"]
    assert EXPERIMENTS[name].dialogues == {} and settings.epochs >= 3
    assert training_arguments(settings, tmp_path, model, rows).max_steps == -1


def test_selection_leaves_out_what_nearly_stands_in_train():
    rows = [row | {"dialogue": row["dialogue"] + f" {' '.join(f'word{n}x{m}' for m in range(60))}"}
            for n, row in enumerate(tiny_rows(6))]  # fmt: skip
    train, validation = data._group(rows[:4], "train"), data._group(rows[2:], "validation")
    assert data.unseen(validation, train)["id"] == ["d_4", "d_5"]
    assert len(data.unseen(validation, data._group(rows, "all"))) == 4  # nothing would be left


def test_peak_memory_sees_what_was_allocated():
    with hardware.PeakMemory() as small:
        pass
    with hardware.PeakMemory() as large:
        torch.ones(200_000_000).sum()
    assert large.bytes - small.bytes > 500_000_000  # of 800: meanwhile the process may give back what others used


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux alone")
def test_peak_memory_leaves_out_what_was_freed_before():
    pieces = [torch.ones(16_000) for _ in range(12_500)]  # 800 MB in pieces that the C library keeps when freed
    with hardware.PeakMemory() as before:
        pass
    last = pieces[-1]  # at the end of the heap
    pieces.append(pieces)  # a circle
    del pieces
    with hardware.PeakMemory() as after:
        assert last.sum() == 16_000
    assert before.bytes - after.bytes > 600_000_000
