"""Tiny random models of both families with a tokenizer trained on the spot, and tiny data to go with them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # a card computes in bf16; the tests that need one say how
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    os.environ["TRITON_INTERPRET"] = "1"  # runs kernels on the CPU; read when Triton is imported
os.environ["ONEDNN_MAX_CPU_ISA"] = (
    "AVX2"  # in fp32 wherever the tests run, their subprocesses too: tolerances are tight
)

import tokenizers
import torch
import transformers
from tokenizers import decoders, pre_tokenizers, processors, trainers

from dialogue_summarization import experiments, fitting
from dialogue_summarization.experiments import Experiment, Generation, Settings
from dialogue_summarization.memory import Plan

torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PEOPLE = ["Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"]
THINGS = ["a red bike", "two lemons", "the old map", "a train ticket", "soup", "a violin", "her keys", "nine stamps"]


def tiny_rows(count, references=1, start=0):
    """Dialogues and summaries that differ from one another; not meant to be good English."""
    rows = []
    for number in range(start, start + count):
        who, what = PEOPLE[number % 8], THINGS[(number // 8 + number) % 8]
        dialogue = (
            f"#Person1#: Hello {who}, did you bring {what}?\n#Person2#: No, I left number {number} at home.\n"
            f"#Person1#: Then we have to wait until {number % 12 + 1} o'clock.\n#Person2#: I am sorry."
        )
        for reference in range(references):
            suffix = f"_{reference + 1}" if references > 1 else ""
            summary = f"{who} forgot {what}." if reference == 0 else f"{who} left {what} at home, number {number}."
            rows.append({"id": f"d_{number}{suffix}", "dialogue": dialogue, "summary": summary, "topic": "waiting"})
    return rows


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_data")
    write_jsonl(folder / "train.jsonl", tiny_rows(16))
    write_jsonl(folder / "validation.jsonl", tiny_rows(4, start=16))
    write_jsonl(folder / "test.jsonl", tiny_rows(5, references=3, start=20))
    return folder


ENCODER_DECODERS = ("t5", "bart", "pegasus")
ARCHITECTURES = (*ENCODER_DECODERS, "llama", "qwen2", "qwen3")


def _tokenizer(family):
    special = ["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [row["dialogue"] + row["summary"] for row in tiny_rows(30)] + [
        "summarize the following conversation:\nsummary: "
    ]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    if family in ENCODER_DECODERS:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    encoder_decoder = family in ENCODER_DECODERS
    eos = "</s>" if encoder_decoder else "<|im_end|>"
    # As in SmolLM2, the decoder-only tokenizer's pad token is its end token: masking must not depend on it.
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<pad>" if encoder_decoder else eos, unk_token="<unk>"
    )
    if not encoder_decoder:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_network(family, vocab_size=400, dropout=0.0, d_kv=8):
    torch.manual_seed(0)
    if family == "t5":
        config = transformers.T5Config(
            vocab_size=vocab_size, d_model=32, d_kv=d_kv, d_ff=64, num_layers=2, num_heads=4, dropout_rate=dropout,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0,
            eos_token_id=1,
        )  # fmt: skip
        network = transformers.T5ForConditionalGeneration(config)
        # FLAN-T5's head is its own, which T5Config no longer says in transformers 5: its weights decide. Scaled, as it
        # would start with standard deviation 1 otherwise, for a loss in the hundreds.
        head = network.shared.weight.detach().clone().normal_(std=config.d_model**-0.5)
        network.lm_head.weight = torch.nn.Parameter(head)
        return network
    if family in ENCODER_DECODERS:  # each with its own start of the decoder, as the Hub's configurations have it
        sizes = {
            f"{side}_{name}": size
            for side in ("encoder", "decoder")
            for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
        }
        config = transformers.AutoConfig.for_model(
            family, **sizes, vocab_size=vocab_size, d_model=32, max_position_embeddings=300, dropout=dropout,
            attention_dropout=dropout, activation_dropout=dropout, pad_token_id=0, bos_token_id=3, eos_token_id=1,
            forced_eos_token_id=1, decoder_start_token_id={"bart": 1, "pegasus": 0}[family],
            scale_embedding=family == "pegasus",
        )  # fmt: skip
        return transformers.AutoModelForSeq2SeqLM.from_config(config)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_dropout=dropout, pad_token_id=4, eos_token_id=4, bos_token_id=None,
        **({"head_dim": 16} if family == "qwen3" else {}),
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def save_tiny(family, folder):
    """A tiny random model of an architecture as `from_pretrained` reads it."""
    tokenizer = _tokenizer(family)
    tokenizer.save_pretrained(folder)
    tiny_network(family, len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders with a tiny random model each: {"t5": ..., "llama": ...}."""
    return {family: save_tiny(family, tmp_path_factory.mktemp(f"tiny_{family}")) for family in ("t5", "llama")}


@pytest.fixture(params=["t5", "llama"])
def family_name(request):
    return request.param


@pytest.fixture
def tiny(family_name, tiny_models, tiny_data):
    """An experiment that trains in a second, for each family."""
    return tiny_experiment(tiny_models[family_name], tiny_data)


def tiny_experiment(model, dataset, **changes):
    fast = Settings(5e-3, epochs=2, batch_size=4, select_by="loss")
    base = Experiment(
        name="tiny", title="tiny", model=str(model), dataset=str(dataset), max_prompt_tokens=256,
        settings={"full": fast, "lora": replace(fast, learning_rate=2e-2)}, generation=Generation(max_new_tokens=12),
    )  # fmt: skip
    return replace(base, **changes)


def hold(monkeypatch, micro_batch, checkpointing=False):
    """A device that trains on so many dialogues at once."""

    def fits(batch_size, *_):
        return Plan(micro_batch, batch_size // micro_batch, checkpointing, micro_batch, 0)

    monkeypatch.setattr(fitting, "fits", fits)


@pytest.fixture
def register(monkeypatch):
    """Make an experiment known by name."""

    def add(experiment):
        monkeypatch.setitem(experiments.EXPERIMENTS, experiment.name, experiment)
        return experiment

    return add
