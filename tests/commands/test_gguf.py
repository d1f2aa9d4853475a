"""A GGUF file holds the model: transformers, which reads such files by itself, has the same next tokens from it."""

import itertools
import json
import re

import forked
import gguf
import pytest
import tokenizers
import torch
import transformers
from helpers import tiny_experiment, tiny_model, tiny_rows
from huggingface_hub import ModelCard
from tokenizers import pre_tokenizers

from dialogue_summarization import models, study
from dialogue_summarization.commands import cli, export, gguf_file
from dialogue_summarization.errors import ConfigurationError, ModelError

DIALOGUES = [row["dialogue"] for row in tiny_rows(10, start=40)]


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def bundle(request, tiny_models, tiny_data):
    """A tiny random model of each architecture; its vocabulary has entries that the tokenizer lacks, as Qwen's."""
    tokenizer, family = models.load_tokenizer(str(tiny_models["llama"]), tiny_experiment("tiny", tiny_data))
    config = tiny_model(request.param, len(tokenizer) + 8).config
    if request.param == "qwen3":
        config.head_dim = 128  # transformers reads no other from a file
    config.initializer_range = 0.3  # what is next depends on the dialogue
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    return models.ModelBundle(model, tokenizer, family)


def next_tokens(model, family):
    """The likeliest token behind each of the last 30 positions of each dialogue's prompt."""
    rows = [torch.tensor([family.encode(dialogue)["input_ids"]]) for dialogue in DIALOGUES]
    with torch.no_grad():
        return [model(input_ids=ids).logits[0, -30:].argmax(dim=-1).tolist() for ids in rows]


def test_f16_has_the_models_next_tokens(bundle, tmp_path):
    gguf_file.write(bundle, tmp_path / "model.gguf", "f16", "tiny")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    wanted = next_tokens(bundle.model, bundle.family)
    assert next_tokens(read.eval(), bundle.family) == wanted and len({*itertools.chain(*wanted)}) > 20
    assert gguf_file.check(bundle, tmp_path / "model.gguf", "f16", DIALOGUES) == 10
    assert read.config.model_type == bundle.model.config.model_type
    assert read.num_parameters() == bundle.model.num_parameters()

    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = {name.rpartition(".")[2]: field.contents() for name, field in fields.items() if "tokenizer" in name}
    count = len(bundle.tokenizer)
    assert said["tokens"][:count] == bundle.tokenizer.convert_ids_to_tokens(range(count)) and len(said["merges"]) > 100
    assert said["token_type"][:6] == [3, 3, 3, 3, 3, 1] and said["token_type"][count:] == [5] * 8
    assert said["chat_template"] == bundle.tokenizer.chat_template and said["pre"] == "gpt-2"
    assert said["eos_token_id"] == bundle.tokenizer.eos_token_id and said["add_bos_token"] is False


@pytest.mark.parametrize("bundle", ["llama"], indirect=True)
def test_q8_0_stores_17_bytes_for_16_numbers(bundle, tmp_path):
    sizes = {}
    for kind in ("f16", "q8_0"):
        gguf_file.write(bundle, tmp_path / kind, kind, "tiny")
        sizes[kind] = {one.name: one.n_bytes for one in gguf.GGUFReader(tmp_path / kind).tensors}
    weights = [name for name in sizes["f16"] if "norm" not in name]
    assert all(sizes["q8_0"][name] * 32 == sizes["f16"][name] * 17 for name in weights) and len(weights) > 10


@pytest.mark.parametrize("bundle", ["llama"], indirect=True)
def test_a_file_that_is_wrong_is_seen(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "_interleave", lambda weight, heads: weight)
    gguf_file.write(bundle, tmp_path / "model.gguf", "f16", "tiny")
    with pytest.raises(ModelError, match=r"model\.gguf was written wrongly"):
        gguf_file.check(bundle, tmp_path / "model.gguf", "f16", DIALOGUES)


def test_how_text_is_split_is_named_as_llama_cpp_has_it():
    rule = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s|\s+"  # Llama 3's and Qwen's, shortened
    bytes_alone, digits = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=True),
    )
    splits = {
        name: pre_tokenizers.Split(tokenizers.Regex(rule % numbers), "isolated")
        for name, numbers in (("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"))
    } | {"smollm": digits}
    for name, split in splits.items():
        both = pre_tokenizers.Sequence([split, bytes_alone])
        assert gguf_file.pre_tokenizer_name(json.loads(both.__getstate__())) == name
    assert gguf_file.pre_tokenizer_name(json.loads(bytes_alone.__getstate__())) == "gpt-2"
    assert gguf_file.pre_tokenizer_name(json.loads(pre_tokenizers.Metaspace().__getstate__())) is None


def test_an_export_has_a_modelfile_with_the_prompt_and_a_card(made_once, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.subprocess, "run", forked.subprocess_run)
    run, folder = made_once("llama", "lora-balanced", tmp_path / "runs"), tmp_path / "exported"
    assert cli.main(["export", str(run.folder), str(folder), "--gguf", "f16"]) == 0
    assert "model-f16.gguf: 10 of 10 dialogues get the model's own next token" in capsys.readouterr().out
    family, modelfile = study.load_run(run).family, (folder / "Modelfile").read_text("utf-8")
    template = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)[1]
    assert template.replace("{{ .Prompt }}", DIALOGUES[0]) == family.render(DIALOGUES[0])
    for line in ("FROM ./model-f16.gguf", "PARAMETER temperature 0", 'PARAMETER stop "<|im_end|>"', "num_predict 12"):
        assert line in modelfile
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "gguf" and "ollama create" in card.text
    assert 'gguf_file="model-f16.gguf"' in card.text
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model-f16.gguf", "Modelfile", "README.md", "tokenizer.json"} and "model.safetensors" not in names


def test_what_gguf_does_not_take_is_said(made_once, tmp_path):
    with pytest.raises(ConfigurationError, match=r"llama, qwen2, qwen3.*convert_hf_to_gguf"):
        export.export(made_once("t5", "full", tmp_path / "runs"), tmp_path / "a", gguf="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
