"""Bases in 4 and 8 bits learn through an adapter and come back; where they cannot run, the error says so."""

import importlib.util
import zipfile

import pytest
import torch
from helpers import tiny_experiment, tiny_model
from transformers import AutoModelForCausalLM

from dialogue_summarization import data, hardware, models, study
from dialogue_summarization.acceleration.compilation import supports_packing
from dialogue_summarization.errors import ModelError
from dialogue_summarization.experiments import METHODS, method
from dialogue_summarization.generation import summarize
from dialogue_summarization.methods import adapt, quantization

needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="uv sync --extra quantization installs bitsandbytes"
)


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["qlora-nf4", "qlora-int8"])
def test_an_adapter_learns_on_a_quantized_base(tiny, tmp_path, name):
    run = study.run(tiny, method(name), outputs=tmp_path)
    losses = run.log["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0] and run.weights.name == "adapter"
    assert run.config.options == {"quantization": name.removeprefix("qlora-")}
    plain = models.apply_method(models.load_model(tiny).model, METHODS["lora-all-linear"])
    counts = models.count_parameters(plain)
    assert {key: run.metrics[key] for key in counts} == counts
    reloaded = models.load_model(tiny, run.weights, quantization=run.config.options["quantization"])
    kinds = {type(part).__name__ for part in reloaded.model.modules()}
    assert "Linear4bit" in kinds or "Linear8bitLt" in kinds
    assert not supports_packing(reloaded.model)
    texts = summarize(reloaded, data.load(tiny)["test"]["dialogue"], tiny.generation, progress=False)
    assert texts == run.predictions["prediction"].tolist()


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["zero-shot-nf4", "zero-shot-int8"])
def test_a_quantized_base_writes(tiny, tmp_path, name):
    run = study.run(tiny, method(name), outputs=tmp_path)
    assert run.metrics["parameters"] == models.count_parameters(models.load_model(tiny).model)["parameters"]
    assert run.config.key != study.prepare(tiny, METHODS["zero-shot"], outputs=tmp_path).config.key


@pytest.mark.skipif(hardware.device().type != "cpu", reason="for a CPU alone")
def test_int8_on_a_cpu_writes_close_to_what_fp32_writes(tiny, family_name, tmp_path):
    run = study.run(tiny, method("zero-shot-int8-cpu"), outputs=tmp_path)
    assert len(run.predictions) == len(data.load(tiny)["test"]) and run.metrics["generate_memory_bytes"] > 0
    ids = torch.arange(5, 25)[None]
    inputs = {"decoder_input_ids": ids[:, :6]} if family_name == "t5" else {}
    with torch.no_grad():
        exact = models.load_model(tiny).model(input_ids=ids, **inputs).logits
        model = models.load_model(tiny, quantization="int8-cpu").model
        close = model(input_ids=ids, **inputs).logits
    assert not torch.equal(exact, close)
    assert (exact - close).abs().mean() < 0.05 * exact.abs().mean()
    parameters = sum(weight.numel() for weight in tiny_model(family_name).parameters())
    assert models.count_parameters(model)["parameters"] == parameters


@pytest.mark.skipif(hardware.device().type != "cpu", reason="for a CPU alone")
@pytest.mark.parametrize("kind", [None, "int8-cpu"])
def test_weights_take_what_a_file_of_them_takes(tiny, tmp_path, kind):
    model = models.load_model(tiny, quantization=kind).model
    torch.save(model.state_dict(), tmp_path / "weights")
    with zipfile.ZipFile(tmp_path / "weights") as file:
        stored = sum(part.file_size for part in file.infolist() if "/data/" in part.filename)
    assert quantization.weight_bytes(model) == pytest.approx(stored, rel=0.03)


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_without_bitsandbytes_the_error_says_how_to_get_it(monkeypatch, name):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ModelError, match=rf"{name}.*--extra quantization"):
        quantization.load_quantized("nowhere", AutoModelForCausalLM, name)


@pytest.mark.parametrize(("kind", "name", "said"), [("mps", "nf4", "Apple"), ("cuda", "int8-cpu", "without a GPU")])
def test_devices_on_which_they_do_not_run(monkeypatch, kind, name, said):
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    with pytest.raises(ModelError, match=said):
        quantization.load_quantized("nowhere", AutoModelForCausalLM, name)


def test_nothing_changes_for_other_methods(tiny, monkeypatch):
    monkeypatch.setattr(adapt, "load_quantized", None)
    model = models.load_model(tiny, quantization=METHODS["lora-balanced"].quantization).model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32} and not hasattr(model, "is_quantized")


def test_a_method_that_cannot_run_says_so_before_it_trains(tiny_models, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ModelError, match="bitsandbytes"):
        study.run(tiny_experiment(tiny_models["llama"], tiny_data), method("qlora-nf4"), outputs=tmp_path)
