"""Where memory runs out, generation goes on with less at once, and nothing else changes."""

import pytest
import torch
from helpers import tiny_rows

from dialogue_summarization.acceleration.decoding import AcceleratedGenerator
from dialogue_summarization.acceleration.oom import is_out_of_memory, retry_with_less
from dialogue_summarization.errors import NotEnoughMemory
from dialogue_summarization.experiments import Generation
from dialogue_summarization.generation import generation_config, summarize
from dialogue_summarization.models import base_model, load_model

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 5.99 GiB."
GENERATION = Generation(max_new_tokens=30)


def limit(model, most):
    """Let memory run out in passes of more dialogues at once."""
    seen = []

    def hook(module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and not module.training:
            seen.append(len(ids))
            if len(ids) > most:
                raise torch.OutOfMemoryError(MESSAGE)

    part = base_model(model)
    part = part.get_encoder() if part.config.is_encoder_decoder else part.get_decoder()
    part.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def test_what_is_generated_does_not_depend_on_how_much_fits(tiny, capsys):
    bundle = load_model(tiny)
    dialogues = [row["dialogue"] for row in tiny_rows(5, start=20)]
    texts = summarize(bundle, dialogues, GENERATION, progress=False)
    seen = limit(bundle.model, 3)
    capsys.readouterr()
    assert summarize(bundle, dialogues, GENERATION, progress=False) == texts
    assert max(seen) == 5
    assert "while writing summaries of 5 dialogues at a time: going on with 2." in capsys.readouterr().out


def test_later_batches_are_as_small_as_what_fitted(tiny):
    bundle = load_model(tiny)
    rows = bundle.family.encode_all([row["dialogue"] for row in tiny_rows(8)])
    base_model(bundle.model).generation_config = generation_config(bundle, GENERATION)
    limit(bundle.model, 3)
    with AcceleratedGenerator(bundle, GENERATION) as generate:
        before = generate.tokens
        assert len(generate(rows)) == 8
        longest = max(len(row["input_ids"]) for row in rows) + GENERATION.max_new_tokens
        assert generate.tokens == 2 * longest < before


def test_one_dialogue_that_does_not_fit_is_an_error_that_says_what_to_do(tiny):
    bundle = load_model(tiny)
    limit(bundle.model, 0)
    with pytest.raises(NotEnoughMemory, match=r"one dialogue\. .*max_prompt_tokens"):
        summarize(bundle, ["Ann: Hi.", "Ben: No."], GENERATION, progress=False)


def test_less_is_tried_until_it_fits():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError(MESSAGE)
        return size

    assert retry_with_less(attempt, 16, lambda size: size // 2) == 2
    assert tried == [16, 8, 4, 2]


def test_other_errors_are_not_mended():
    tried = []

    def attempt(size):
        tried.append(size)
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        retry_with_less(attempt, 4, lambda size: size // 2)
    assert tried == [4]


def test_memory_that_runs_out_during_a_capture_is_seen():
    try:
        try:
            raise torch.OutOfMemoryError(MESSAGE)
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert is_out_of_memory(error)
    assert not is_out_of_memory(NotEnoughMemory(MESSAGE))
