"""Summaries: in the order asked for, the same in any batch, never sampled."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_experiment, tiny_rows
from transformers import NoRepeatNGramLogitsProcessor

from dialogue_summarization import decoding, fast, hardware, models
from dialogue_summarization.experiments import METHODS, Generation
from dialogue_summarization.generation import NoRepeatedNgram, generation_config, summarize
from dialogue_summarization.generation import _generate as generate

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


@pytest.fixture
def model(tiny):
    """A tiny model with weights so large that its summaries depend on the dialogue; some of them end early."""
    loaded = models.load(tiny)
    torch.manual_seed(1)
    head = loaded.network.get_output_embeddings().weight
    with torch.no_grad():
        for weight in loaded.network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
        head[loaded.tokenizer.eos_token_id] = 1.1 * head[tokens_by_hand(loaded, DIALOGUES[0], 4)[-1]]
    return loaded


def tokens_by_hand(model, dialogue, length):
    """Greedy search without `generate`, a dialogue by itself, without padding and cache."""
    encoder_decoder = model.network.config.is_encoder_decoder
    prompt = torch.tensor([model.family.encode(dialogue)["input_ids"]])
    written = torch.tensor([[model.network.config.decoder_start_token_id]]) if encoder_decoder else prompt
    tokens = []
    while len(tokens) < length:
        inputs = {"input_ids": prompt, "decoder_input_ids": written} if encoder_decoder else {"input_ids": written}
        with torch.no_grad():
            token = model.network(**inputs).logits[0, -1].argmax()
        if token == model.tokenizer.eos_token_id:
            break
        tokens.append(token.item())
        written = torch.cat([written, token[None, None]], dim=1)
    return tokens


def by_hand(model):
    tokens = [tokens_by_hand(model, dialogue, GREEDY.max_new_tokens) for dialogue in DIALOGUES]
    return [model.tokenizer.decode(some, skip_special_tokens=True).strip() for some in tokens]


@pytest.mark.parametrize("tokens", [1, 300, None])
def test_any_batch_gives_what_greedy_search_by_hand_gives(model, tokens):
    texts = summarize(model, DIALOGUES, GREEDY, progress=False, tokens=tokens)
    assert len(set(texts)) > 4  # else a wrong order would not be seen
    ended = [len(tokens_by_hand(model, dialogue, 12)) < 12 for dialogue in DIALOGUES]
    assert any(ended) and not all(ended)
    assert texts == by_hand(model)


def test_the_order_asked_for_is_kept(model):
    texts = summarize(model, DIALOGUES, GREEDY, progress=False, tokens=300)
    turned = summarize(model, DIALOGUES[::-1], GREEDY, progress=False, tokens=300)
    assert turned == texts[::-1] != texts


def test_no_dialogues_no_summaries(model):
    assert summarize(model, [], GREEDY, progress=False) == []


def test_beams_give_other_texts_and_the_same_in_any_batch(model):
    beams = replace(GREEDY, num_beams=4)
    texts = summarize(model, DIALOGUES, beams, progress=False)
    assert texts != summarize(model, DIALOGUES, GREEDY, progress=False)
    assert texts == summarize(model, DIALOGUES, beams, progress=False, tokens=1)
    shorter = summarize(model, DIALOGUES, replace(beams, length_penalty=-5.0), progress=False)
    assert sum(map(len, shorter)) < sum(map(len, texts))


def test_no_token_repeats_where_that_is_asked_for(model):
    """Told by the tokens, since a text does not show them."""

    def repeated(generation):
        batch = model.family.collate([model.family.encode(dialogue) for dialogue in DIALOGUES])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        model.network.generation_config = generation_config(model, generation)
        output = model.family.completion(generate(model, inputs, generation), batch["input_ids"].shape[1])
        special = set(model.tokenizer.all_special_ids)
        rows = [[token for token in row if token not in special] for row in output.tolist()]
        return sum(len(row) - len(set(row)) for row in rows)

    assert repeated(Generation(max_new_tokens=30)) > 0
    assert repeated(Generation(max_new_tokens=30, no_repeat_ngram_size=1)) == 0


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 0.7, "top_p": 0.5, "top_k": 5},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 1},
        {"repetition_penalty": 5.0},
        {"min_length": 300},
        {"min_new_tokens": 10},
        {"max_length": 3},
        {"suppress_tokens": list(range(50, 300))},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_models_own_way_of_writing_is_left_behind(model, own):
    expected = summarize(model, DIALOGUES, GREEDY, progress=False)
    for name, value in own.items():
        setattr(model.network.generation_config, name, value)
    torch.manual_seed(5)
    assert summarize(model, DIALOGUES, GREEDY, progress=False) == expected


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeated_ngrams_are_those_that_transformers_bans(size):
    prompt, written = torch.randint(0, 5, (40, 6)), torch.randint(0, 5, (40, 9))
    ours = NoRepeatedNgram(size, lambda ids: ids[:, 6:])
    for length in range(10):
        scores = torch.randn(40, 5)
        expected = NoRepeatNGramLogitsProcessor(size)(written[:, :length], scores.clone())
        assert torch.equal(ours(torch.cat([prompt, written[:, :length]], dim=1), scores), expected)


def test_adapters_and_merged_models_write_the_same(model):
    adapted = models.adapt(model.network, METHODS["lora-balanced"])
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    adapter = replace(model, network=adapted)
    texts = summarize(adapter, DIALOGUES, GREEDY, progress=False)
    assert texts == by_hand(adapter)
    merged = replace(model, network=adapted.merge_and_unload())
    assert summarize(merged, DIALOGUES, GREEDY, progress=False) == texts


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_it_was(model, training):
    model.network.train(training)
    summarize(model, DIALOGUES[:2], GREEDY, progress=False)
    assert {module.training for module in model.network.modules()} == {training}


def test_dropout_is_off_while_summaries_are_written(model):
    expected = summarize(model, DIALOGUES, GREEDY, progress=False)
    for module in model.network.modules():  # T5's, Llama's
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    network = model.network.train()
    batch = model.family.collate([model.family.encode(DIALOGUES[0], "A summary.")])
    assert network(**batch).loss != network(**batch).loss
    assert summarize(model, DIALOGUES, GREEDY, progress=False) == expected


def test_the_mode_is_as_it_was_after_an_error(model):
    model.network.train()
    with pytest.raises((RuntimeError, ValueError), match="-1"):
        summarize(model, DIALOGUES[:2], replace(GREEDY, num_beams=-1), progress=False)
    assert model.network.training


def test_the_bar_is_plain_text(model, capsys):
    summarize(model, DIALOGUES, GREEDY, progress=True)
    assert "7/7" in capsys.readouterr().out
    summarize(model, DIALOGUES, GREEDY, progress=False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_cache_of_fixed_size_writes_what_a_growing_one_does(tiny_models, tiny_data, num_beams):
    loaded = models.load(tiny_experiment(tiny_models["llama"], tiny_data))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in loaded.network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    batch = loaded.family.collate([loaded.family.encode(dialogue) for dialogue in DIALOGUES])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    loaded.network.generation_config = generation_config(loaded, replace(GREEDY, num_beams=num_beams))
    expected = loaded.network.generate(**inputs)
    cache = decoding.static_cache(loaded.network, batch["input_ids"].shape[1], GREEDY.max_new_tokens, torch.float32)
    with decoding.attention(loaded.network, fast.PACKED):
        found = loaded.network.generate(**inputs, past_key_values=cache)
    assert found.tolist() == expected.tolist()
    assert len({tuple(row) for row in found.tolist()}) > 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card: CUDA_VISIBLE_DEVICES=0 pytest -k graphs")
@pytest.mark.parametrize("num_beams", [1, 4])
def test_graphs_write_what_plain_passes_do(model, monkeypatch, num_beams):
    model.network.to("cuda")
    monkeypatch.setattr(hardware, "precision", lambda: "fp32")  # bf16 rounds otherwise in another attention kernel
    monkeypatch.setattr(hardware, "fast_steps", lambda: True)
    beams = replace(GREEDY, num_beams=num_beams)
    found = summarize(model, DIALOGUES, beams, progress=False, tokens=2_000)
    monkeypatch.setattr(hardware, "fast_steps", lambda: False)
    assert found == summarize(model, DIALOGUES, beams, progress=False, tokens=2_000)
