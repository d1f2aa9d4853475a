"""The base models' entries are those of their configurations, and their short names are those of the Hub."""

import re

import forked
import pytest
import torch
import transformers
from helpers import ARCHITECTURES

from dialogue_summarization import data
from dialogue_summarization.commands import cli
from dialogue_summarization.commands.models import BASE_MODELS
from dialogue_summarization.errors import DataError
from dialogue_summarization.experiments import METHODS, VIRTUAL_TOKENS
from dialogue_summarization.models import TARGET_MODULES, apply_method, count_parameters
from dialogue_summarization.tokenization import family_of


def t5(width, hidden, layers, heads):
    return {
        "vocab_size": 32128, "d_model": width, "d_kv": 64, "d_ff": hidden, "num_layers": layers, "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip


def bart(vocabulary, width, hidden, layers, heads):
    sizes = {"layers": layers, "attention_heads": heads, "ffn_dim": hidden}
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    return {"vocab_size": vocabulary, "d_model": width, "max_position_embeddings": 1024, **sides}


def llama(vocabulary, width, hidden, layers, heads, key_heads, **more):
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "tie_word_embeddings": True, **more,
    }  # fmt: skip


# As in the models' config.json on the Hub.
CONFIGURATIONS = {
    "flan-t5-small": t5(512, 1024, 8, 6),
    "flan-t5-base": t5(768, 2048, 12, 12),
    "flan-t5-large": t5(1024, 2816, 24, 16),
    "flan-t5-xl": t5(2048, 5120, 24, 32),
    "t5-v1_1-base": t5(768, 2048, 12, 12),
    "bart-base": bart(50265, 768, 3072, 6, 12),
    "bart-large": bart(50265, 1024, 4096, 12, 16),
    "pegasus-large": bart(96103, 1024, 4096, 16, 16),
    "SmolLM2-135M-Instruct": llama(49152, 576, 1536, 30, 9, 3),
    "SmolLM2-360M-Instruct": llama(49152, 960, 2560, 32, 15, 5),
    "SmolLM2-1.7B-Instruct": llama(49152, 2048, 8192, 24, 32, 32),
    "Qwen2.5-0.5B-Instruct": llama(151936, 896, 4864, 24, 14, 2),
    "Qwen3-0.6B": llama(151936, 1024, 3072, 28, 16, 8, head_dim=128),
    "Llama-3.2-1B-Instruct": llama(128256, 2048, 8192, 16, 32, 8),
}


def test_every_entry_has_a_configuration():
    assert list(CONFIGURATIONS) == list(BASE_MODELS)
    assert {model.architecture for model in BASE_MODELS.values()} == set(ARCHITECTURES)
    assert set(TARGET_MODULES) == {*ARCHITECTURES, "mt5", "mbart", "mistral", "gemma"}  # whose layers are named alike


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_weights_and_adapters_are_those_of_the_configuration(name):
    entry = BASE_MODELS[name]
    config = transformers.AutoConfig.for_model(entry.architecture, **CONFIGURATIONS[name])
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
        if entry.architecture == "t5":  # a head of its own, which T5Config no longer says in transformers 5
            model.lm_head.weight = torch.nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        assert count_parameters(model)["parameters"] == entry.parameters
        adapter = count_parameters(apply_method(model, METHODS["lora-balanced"]))["trainable_parameters"]
    assert 0.002 < adapter / entry.parameters < 0.02  # what BYTES_PER_PARAMETER counts on
    positions = getattr(config, "max_position_embeddings", None)
    assert positions is None or entry.max_prompt_tokens + VIRTUAL_TOKENS <= positions
    assert positions is None or family_of(config, None, 1024).max_prompt_tokens == entry.max_prompt_tokens


@pytest.mark.parametrize(
    ("gb", "fits"), [(0.53, "no"), (0.54, "use"), (0.59, "LoRA"), (2.1, "LoRA"), (2.2, "full")]
)  # SmolLM2-135M: 134,515,008 x 4, 4.32 and 16 bytes = 0.538, 0.581 and 2.152 GB
def test_what_fits(gb, fits):
    assert BASE_MODELS["SmolLM2-135M-Instruct"].fits(int(gb * 1e9)) == fits


def test_study_models_lists_them():
    done = forked.command("models")
    assert done.returncode == 0 and "Free here" in done.stdout
    for name, model in BASE_MODELS.items():
        assert f"{model.parameters:,}" in next(line for line in done.stdout.splitlines() if line.startswith(name))


@pytest.fixture
def asked(monkeypatch):
    """Which experiment a command line asks for."""
    experiments = []

    def load(experiment):
        experiments.append(experiment)
        raise DataError("enough")

    monkeypatch.setattr(data, "load", load)

    def ask(*arguments):
        assert cli.main(["smollm2-dialogsum", *arguments]) == 1
        return experiments[-1]

    return ask


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("bart-base", "facebook/bart-base"),
        ("facebook/bart-base", "facebook/bart-base"),
        ("flan-t5-small", "google/flan-t5-small"),
        ("some/other", "some/other"),
    ],
)
def test_an_experiment_takes_a_base_model(asked, name, model):
    experiment = asked("--model", name)
    assert (experiment.model, experiment.name) == (model, f"smollm2-dialogsum-{model.replace('/', '--')}")


def test_a_folder_with_a_known_name_is_that_folder(asked, tmp_path, monkeypatch):
    (tmp_path / "bart-base").mkdir()
    for name in (str(tmp_path / "bart-base"), "bart-base"):
        monkeypatch.chdir(tmp_path)
        experiment = asked("--model", name)
        assert experiment.model == str(tmp_path / "bart-base")
        assert re.fullmatch("smollm2-dialogsum-bart-base-[0-9a-f]{6}", experiment.name)
