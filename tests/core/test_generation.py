"""Summaries: in the order asked for, the same in any batch, never sampled."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_rows
from transformers import NoRepeatNGramLogitsProcessor

from dialogue_summarization import generation, models
from dialogue_summarization.acceleration.decoding import AcceleratedGenerator
from dialogue_summarization.experiments import METHODS, Generation
from dialogue_summarization.generation import (
    BatchGenerator,
    NoRepeatedNgram,
    batch_generator_class,
    generation_config,
    summarize,
)

GREEDY = Generation(max_new_tokens=12)
# Of very different lengths, neither rising nor falling.
DIALOGUES = [
    tiny_rows(1)[0]["dialogue"] * 3,
    "Ann: Hi.",
    tiny_rows(1, start=3)[0]["dialogue"],
    "Ben: I lost my keys.\nCleo: Which of them?",
    tiny_rows(1, start=5)[0]["dialogue"] * 2,
    "Dan: <|im_end|></s> Soup?",  # as text
    tiny_rows(1, start=9)[0]["dialogue"],
]


@pytest.fixture
def bundle(tiny):
    """A tiny model with weights so large that its summaries depend on the dialogue; some of them end early."""
    loaded = models.load_model(tiny)
    torch.manual_seed(1)
    head = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
        head[loaded.tokenizer.eos_token_id] = 1.1 * head[tokens_by_hand(loaded, DIALOGUES[0], 4)[-1]]
    return loaded


def tokens_by_hand(bundle, dialogue, length):
    """Greedy search without `generate`, a dialogue by itself, without padding and cache."""
    encoder_decoder = bundle.model.config.is_encoder_decoder
    prompt = torch.tensor([bundle.family.encode(dialogue)["input_ids"]])
    written = torch.tensor([[bundle.model.config.decoder_start_token_id]]) if encoder_decoder else prompt
    tokens = []
    while len(tokens) < length:
        inputs = {"input_ids": prompt, "decoder_input_ids": written} if encoder_decoder else {"input_ids": written}
        with torch.no_grad():
            token = bundle.model(**inputs).logits[0, -1].argmax()
        if token == bundle.tokenizer.eos_token_id:
            break
        tokens.append(token.item())
        written = torch.cat([written, token[None, None]], dim=1)
    return tokens


def by_hand(bundle):
    tokens = [tokens_by_hand(bundle, dialogue, GREEDY.max_new_tokens) for dialogue in DIALOGUES]
    return [bundle.tokenizer.decode(some, skip_special_tokens=True).strip() for some in tokens]


@pytest.mark.parametrize("kind", [BatchGenerator, AcceleratedGenerator])
@pytest.mark.parametrize("tokens", [1, 300, None])
def test_any_batch_gives_what_greedy_search_by_hand_gives(bundle, monkeypatch, tokens, kind):
    assert batch_generator_class(bundle) is AcceleratedGenerator  # on a CPU too
    monkeypatch.setattr(generation, "batch_generator_class", lambda _: kind)
    texts = summarize(bundle, DIALOGUES, GREEDY, progress=False, tokens=tokens)
    assert len(set(texts)) > 4  # else a wrong order would not be seen
    ended = [len(tokens_by_hand(bundle, dialogue, 12)) < 12 for dialogue in DIALOGUES]
    assert any(ended) and not all(ended)
    assert texts == by_hand(bundle)


def test_the_order_asked_for_is_kept(bundle):
    texts = summarize(bundle, DIALOGUES, GREEDY, progress=False, tokens=300)
    turned = summarize(bundle, DIALOGUES[::-1], GREEDY, progress=False, tokens=300)
    assert turned == texts[::-1] != texts


def test_no_dialogues_no_summaries(bundle):
    assert summarize(bundle, [], GREEDY, progress=False) == []


def test_beams_give_other_texts_and_the_same_in_any_batch(bundle):
    beams = replace(GREEDY, num_beams=4)
    texts = summarize(bundle, DIALOGUES, beams, progress=False)
    assert texts != summarize(bundle, DIALOGUES, GREEDY, progress=False)
    assert texts == summarize(bundle, DIALOGUES, beams, progress=False, tokens=1)
    shorter = summarize(bundle, DIALOGUES, replace(beams, length_penalty=-5.0), progress=False)
    assert sum(map(len, shorter)) < sum(map(len, texts))


def test_no_token_repeats_where_that_is_asked_for(bundle):
    """Told by the tokens, since a text does not show them."""

    def repeated(settings):
        bundle.model.generation_config = generation_config(bundle, settings)
        with batch_generator_class(bundle)(bundle, settings) as generate:
            output = generate(bundle.family.encode_all(DIALOGUES))
        special = set(bundle.tokenizer.all_special_ids)
        rows = [[token for token in row if token not in special] for row in output]
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
def test_a_models_own_way_of_writing_is_left_behind(bundle, own):
    expected = summarize(bundle, DIALOGUES, GREEDY, progress=False)
    for name, value in own.items():
        setattr(bundle.model.generation_config, name, value)
    torch.manual_seed(5)
    assert summarize(bundle, DIALOGUES, GREEDY, progress=False) == expected


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeated_ngrams_are_those_that_transformers_bans(size):
    prompt, written = torch.randint(0, 5, (40, 6)), torch.randint(0, 5, (40, 9))
    ours = NoRepeatedNgram(size, lambda ids: ids[:, 6:])
    for length in range(10):
        scores = torch.randn(40, 5)
        expected = NoRepeatNGramLogitsProcessor(size)(written[:, :length], scores.clone())
        assert torch.equal(ours(torch.cat([prompt, written[:, :length]], dim=1), scores), expected)


def test_adapters_and_merged_models_write_the_same(bundle):
    adapted = models.apply_method(bundle.model, METHODS["lora-balanced"])
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    adapter = replace(bundle, model=adapted)
    texts = summarize(adapter, DIALOGUES, GREEDY, progress=False)
    assert texts == by_hand(adapter)
    merged = replace(bundle, model=adapted.merge_and_unload())
    assert summarize(merged, DIALOGUES, GREEDY, progress=False) == texts


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_it_was(bundle, training):
    bundle.model.train(training)
    summarize(bundle, DIALOGUES[:2], GREEDY, progress=False)
    assert {module.training for module in bundle.model.modules()} == {training}


def test_dropout_is_off_while_summaries_are_generated(bundle):
    expected = summarize(bundle, DIALOGUES, GREEDY, progress=False)
    for module in bundle.model.modules():  # T5's, Llama's
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    model = bundle.model.train()
    batch = bundle.family.collate([bundle.family.encode(DIALOGUES[0], "A summary.")])
    assert model(**batch).loss != model(**batch).loss
    assert summarize(bundle, DIALOGUES, GREEDY, progress=False) == expected


def test_the_mode_is_as_it_was_after_an_error(bundle):
    bundle.model.train()
    with pytest.raises((RuntimeError, ValueError), match="-1"):
        summarize(bundle, DIALOGUES[:2], replace(GREEDY, num_beams=-1), progress=False)
    assert bundle.model.training


def test_the_bar_is_plain_text(bundle, capsys):
    summarize(bundle, DIALOGUES, GREEDY, progress=True)
    assert "7/7" in capsys.readouterr().out
    summarize(bundle, DIALOGUES, GREEDY, progress=False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
