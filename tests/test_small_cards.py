"""The study's runs on part of a card: each is measured, and one that fails is recorded as failed."""

from conftest import tiny_experiment
from test_halving import limit

from dialogue_summarization import benchmark, data, experiments, models, small_cards, throughput
from dialogue_summarization.models import Model


def test_all_runs_are_measured_and_failures_recorded(tiny_models, tiny_data, monkeypatch):
    def build(name, method):
        if (name, method) == ("t5-base", "full"):
            raise RuntimeError("no such\nmodel")
        family = {"smollm2": "llama", "t5-base": "t5"}[name]
        model = models.load(tiny_experiment(tiny_models[family], tiny_data))
        network = models.adapt(model.network, experiments.method(method))
        if method == "lora-balanced":
            limit(network, 2)
        return Model(network, model.tokenizer, model.family)

    monkeypatch.setattr(throughput, "build", build)
    monkeypatch.setattr(small_cards, "STEPS", 3)
    found = benchmark.measure_small_card("fits-6", data.load_source(str(tiny_data)))
    assert (found["name"], found["gib"]) == ("fits-6", 6)
    runs = [(run["model"], run["method"], run.get("failed")) for run in found["runs"]]
    smollm2 = [("smollm2", method, None) for method in ("full", "lora-balanced")]
    other = [("t5-base", "full", "RuntimeError: no such"), ("t5-base", "lora-balanced", None)]
    assert runs == smollm2 + other
    for run in found["runs"]:
        if "failed" not in run:
            assert run["steps"] == 3 and run["planned"]["micro_batch"] >= 4
            assert run["micro_batch"] == (2 if run["method"] == "lora-balanced" else run["planned"]["micro_batch"])
