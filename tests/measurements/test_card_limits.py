"""The study's runs on part of a card: each is measured, and one that fails is recorded as failed."""

from dataclasses import replace

import torch
from helpers import tiny_experiment

from dialogue_summarization import data, experiments, models
from measurements import card_limits, short_training


def limit(model, most):
    """Let memory run out in training of more dialogues at once."""

    def hook(module, args, kwargs):
        if module.training and len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    models.base_model(model).get_decoder().register_forward_pre_hook(hook, with_kwargs=True)


def test_all_runs_are_measured_and_failures_recorded(tiny_models, tiny_data, monkeypatch):
    def build(name, method):
        if (name, method) == ("t5-base", "full"):
            raise RuntimeError("no such\nmodel")
        family = {"smollm2": "llama", "t5-base": "t5"}[name]
        bundle = models.load_model(tiny_experiment(tiny_models[family], tiny_data))
        bundle = replace(bundle, model=models.apply_method(bundle.model, experiments.method(method)))
        if (name, method) == ("smollm2", "lora-balanced"):
            limit(bundle.model, 2)
        return bundle

    monkeypatch.setattr(short_training, "build", build)
    monkeypatch.setattr(card_limits, "STEPS", 3)
    record = {"name": "fits-6"}
    card_limits.measure(record, data.load_source(str(tiny_data)))
    assert record["gib"] == 6
    runs = [(run["model"], run["method"], run.get("failed")) for run in record["runs"]]
    smollm2 = [("smollm2", method, None) for method in ("full", "lora-balanced")]
    other = [("t5-base", "full", "RuntimeError: no such"), ("t5-base", "lora-balanced", None)]
    assert runs == smollm2 + other
    for run in record["runs"]:
        if "failed" not in run:
            assert run["steps"] == 3 and run["planned"]["micro_batch"] >= 4
            halved = (run["model"], run["method"]) == ("smollm2", "lora-balanced")
            assert run["micro_batch"] == (2 if halved else run["planned"]["micro_batch"])
