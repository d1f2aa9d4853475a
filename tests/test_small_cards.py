"""The study's runs on part of a card: each is measured, and one that fails is recorded as failed."""

import pytest
from conftest import tiny_experiment
from test_halving import limit

from dialogue_summarization import benchmark, data, experiments, models, small_cards
from dialogue_summarization.models import Model


@pytest.mark.parametrize("name", ["fits-6", "fits-8-packed"])
def test_all_runs_are_measured_and_failures_recorded(tiny_models, tiny_data, monkeypatch, name):
    def build(entry):
        if entry.method == "full" and entry.model == "t5-base":
            raise RuntimeError("no such\nmodel")
        family = {"smollm2": "llama", "t5-base": "t5"}[entry.model]
        model = models.load(tiny_experiment(tiny_models[family], tiny_data))
        network = models.adapt(model.network, experiments.method(entry.method))
        if entry.method == "lora-balanced":
            limit(network, 2)
        return Model(network, model.tokenizer, model.family)

    monkeypatch.setattr(benchmark, "build", build)
    monkeypatch.setattr(small_cards, "STEPS", 3)
    found = benchmark.measure_small_card(name, data.load_source(str(tiny_data)))
    packed = name.endswith("packed")
    assert (found["name"], found["gib"]) == (name, 8 if packed else 6)
    runs = [(run["model"], run["method"], run.get("failed")) for run in found["runs"]]
    smollm2 = [("smollm2", method, None) for method in ("full", "lora-balanced")]
    other = [("t5-base", "full", "RuntimeError: no such"), ("t5-base", "lora-balanced", None)]
    assert runs == smollm2 + other * (not packed)
    for run in found["runs"]:
        if "failed" not in run:
            assert run["steps"] == 3 and run["planned"]["micro_batch"] >= 4 and run["packed"] == packed
            assert run["micro_batch"] == (2 if run["method"] == "lora-balanced" else run["planned"]["micro_batch"])
