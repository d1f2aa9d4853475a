"""Generation over a cache of fixed size, and by CUDA graphs, gives what plain `generate` gives."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_experiment, tiny_rows

from dialogue_summarization import hardware
from dialogue_summarization.acceleration import decoding
from dialogue_summarization.acceleration.decoding import AcceleratedGenerator, fast_decoding, fixed_cache
from dialogue_summarization.experiments import Generation, method
from dialogue_summarization.generation import BatchGenerator, generation_config, summarize
from dialogue_summarization.models import apply_method, load_model

GREEDY = Generation(max_new_tokens=12)
# Of very different lengths, neither rising nor falling.
DIALOGUES = [
    tiny_rows(1)[0]["dialogue"] * 3,
    "Ann: Hi.",
    tiny_rows(1, start=3)[0]["dialogue"],
    "Ben: I lost my keys.\nCleo: Which of them?",
    tiny_rows(1, start=5)[0]["dialogue"] * 2,
    "Dan: Soup?",
    tiny_rows(1, start=9)[0]["dialogue"],
]


def with_large_weights(bundle):
    """Then summaries depend on the dialogue."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in bundle.model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return bundle


@pytest.fixture
def bundle(tiny):
    return with_large_weights(load_model(tiny))


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_cache_of_fixed_size_writes_what_a_growing_one_does(tiny_models, tiny_data, num_beams):
    bundle = with_large_weights(load_model(tiny_experiment(tiny_models["llama"], tiny_data)))
    batch = bundle.family.collate([bundle.family.encode(dialogue) for dialogue in DIALOGUES])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    bundle.model.generation_config = generation_config(bundle, replace(GREEDY, num_beams=num_beams))
    expected = bundle.model.generate(**inputs)
    cache = fixed_cache(bundle.model, batch["input_ids"].shape[1], GREEDY.max_new_tokens)
    own_attention = bundle.model.config._attn_implementation
    with fast_decoding(bundle.model):
        output = bundle.model.generate(**inputs, past_key_values=cache)
    assert bundle.model.config._attn_implementation == own_attention
    assert output.tolist() == expected.tolist()
    assert len({tuple(row) for row in output.tolist()}) > 4


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("tokens", [1, 300, 16 * 1024])
def test_batches_of_any_size_give_what_plain_generate_gives_one_by_one(bundle, num_beams, tokens):
    generation = replace(GREEDY, num_beams=num_beams)
    bundle.model.generation_config = generation_config(bundle, generation)
    special = set(bundle.tokenizer.all_special_ids)

    def without_special(rows):
        return [[token for token in row if token not in special] for row in rows]

    with BatchGenerator(bundle, generation) as plain:
        expected = [plain([row])[0] for row in bundle.family.encode_all(DIALOGUES)]
    assert decoding.supports(bundle)
    with AcceleratedGenerator(bundle, generation) as generate:
        rows = generate(bundle.family.encode_all(DIALOGUES))
    assert without_special(rows) == without_special(expected)
    texts = summarize(bundle, DIALOGUES, generation, progress=False, tokens=tokens)
    assert texts == [text.strip() for text in bundle.tokenizer.batch_decode(expected, skip_special_tokens=True)]


def test_a_cpu_rounds_weights_once_and_restores_them(bundle, monkeypatch):
    monkeypatch.setattr(hardware, "precision", lambda: "bf16")
    before = {name: weight.clone() for name, weight in bundle.model.named_parameters()}
    with AcceleratedGenerator(bundle, GREEDY):
        assert {weight.dtype for weight in bundle.model.parameters()} == {torch.bfloat16}
    for name, weight in bundle.model.named_parameters():
        assert weight.dtype == torch.float32 and torch.equal(weight, before[name])


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_a_model_in_int8_computes_in_fp32_whatever_the_cpu(bundle, monkeypatch):
    expected = summarize(bundle, DIALOGUES, GREEDY, progress=False)
    monkeypatch.setattr(hardware, "precision", lambda: "bf16")
    bundle.model.int8_parameters = 1
    assert summarize(bundle, DIALOGUES, GREEDY, progress=False) == expected


def test_virtual_tokens_are_left_to_plain_generate_on_a_cpu(bundle):
    adapted = apply_method(bundle.model, method("prefix-tuning"))
    assert not decoding.supports(replace(bundle, model=adapted))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0 pytest -k graphs")
@pytest.mark.parametrize("num_beams", [1, 4])
def test_graphs_write_what_plain_passes_do(bundle, monkeypatch, num_beams):
    bundle.model.to("cuda")
    monkeypatch.setattr(hardware, "precision", lambda: "fp32")  # bf16 rounds otherwise in another attention kernel
    monkeypatch.setattr(decoding, "fast_steps_available", lambda: True)
    beams = replace(GREEDY, num_beams=num_beams)
    texts = summarize(bundle, DIALOGUES, beams, progress=False, tokens=2_000)
    monkeypatch.setattr(decoding, "fast_steps_available", lambda: False)
    assert texts == summarize(bundle, DIALOGUES, beams, progress=False, tokens=2_000)
