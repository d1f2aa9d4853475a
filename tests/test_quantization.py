"""Bases in 4 and 8 bits learn through an adapter and come back; where they cannot run, the error says so."""

import importlib.util
import zipfile

import pytest
import torch
from conftest import tiny_experiment, tiny_network

from dialogue_summarization import data, hardware, models, quantization, study
from dialogue_summarization.experiments import METHODS
from dialogue_summarization.generation import summarize

needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="uv sync --extra quantization installs bitsandbytes"
)


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["qlora-nf4", "qlora-int8"])
def test_an_adapter_learns_on_a_quantized_base(tiny, tmp_path, name):
    run = study.run(tiny, METHODS[name], outputs=tmp_path)
    losses = run.log["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0] and run.weights.name == "adapter"
    assert run.config.options == {"quantization": name.removeprefix("qlora-")}
    plain = models.count_parameters(models.adapt(models.load(tiny).network, METHODS["lora-all-linear"]))
    assert {key: run.metrics[key] for key in plain} == plain
    reloaded = models.reload(tiny, run.weights, run.config.options["quantization"])
    kinds = {type(part).__name__ for part in reloaded.network.modules()}
    assert "Linear4bit" in kinds or "Linear8bitLt" in kinds
    assert not models.packs(reloaded.network)
    texts = summarize(reloaded, data.load(tiny)["test"]["dialogue"], tiny.generation, progress=False)
    assert texts == run.predictions["prediction"].tolist()


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["zero-shot-nf4", "zero-shot-int8"])
def test_a_quantized_base_writes(tiny, tmp_path, name):
    run = study.run(tiny, METHODS[name], outputs=tmp_path)
    assert run.metrics["parameters"] == models.count_parameters(models.load(tiny).network)["parameters"]
    assert run.config.key != study.prepare(tiny, METHODS["zero-shot"], outputs=tmp_path).config.key


@pytest.mark.skipif(hardware.device().type != "cpu", reason="for a CPU alone")
def test_int8_on_a_cpu_writes_close_to_what_fp32_writes(tiny, family_name, tmp_path):
    run = study.run(tiny, METHODS["zero-shot-int8-cpu"], outputs=tmp_path)
    assert len(run.predictions) == len(data.load(tiny)["test"]) and run.metrics["generate_memory_bytes"] > 0
    ids = torch.arange(5, 25)[None]
    more = {"decoder_input_ids": ids[:, :6]} if family_name == "t5" else {}
    with torch.no_grad():
        exact = models.load(tiny).network(input_ids=ids, **more).logits
        network = models.load(tiny, "int8-cpu").network
        close = network(input_ids=ids, **more).logits
    assert not torch.equal(exact, close)
    assert (exact - close).abs().mean() < 0.05 * exact.abs().mean()
    weights = sum(weight.numel() for weight in tiny_network(family_name).parameters())
    assert models.count_parameters(network)["parameters"] == weights


@pytest.mark.skipif(hardware.device().type != "cpu", reason="for a CPU alone")
@pytest.mark.parametrize("kind", [None, "int8-cpu"])
def test_weights_take_what_a_file_of_them_takes(tiny, tmp_path, kind):
    network = models.load(tiny, kind).network
    torch.save(network.state_dict(), tmp_path / "weights")
    with zipfile.ZipFile(tmp_path / "weights") as file:
        stored = sum(part.file_size for part in file.infolist() if "/data/" in part.filename)
    assert quantization.weight_bytes(network) == pytest.approx(stored, rel=0.03)


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_without_bitsandbytes_the_error_says_how_to_get_it(monkeypatch, name):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(models.ModelError, match=rf"{name}.*--extra quantization"):
        quantization.load_arguments(name)


@pytest.mark.parametrize(("kind", "name", "said"), [("mps", "nf4", "Apple"), ("cuda", "int8-cpu", "without a GPU")])
def test_devices_on_which_they_do_not_run(monkeypatch, kind, name, said):
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    with pytest.raises(models.ModelError, match=said):
        quantization.load_arguments(name)


def test_nothing_changes_for_other_methods():
    assert quantization.load_arguments(None) == {} and METHODS["lora-balanced"].quantization is None


def test_a_method_that_cannot_run_says_so_before_it_trains(tiny_models, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(models.ModelError, match="bitsandbytes"):
        study.run(tiny_experiment(tiny_models["llama"], tiny_data), METHODS["qlora-nf4"], outputs=tmp_path)
