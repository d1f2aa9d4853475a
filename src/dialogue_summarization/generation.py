"""Generate summaries in batches, longest dialogues first, and return them in the order asked for."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessorList, NoRepeatNGramLogitsProcessor

from . import hardware
from .experiments import Generation
from .models import ModelBundle, base_model

# What a checkpoint's generation settings may say about its tokens; its sampling settings are left behind.
_TOKENS = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@torch.no_grad()
def summarize(
    bundle: ModelBundle,
    dialogues: Sequence[str],
    generation: Generation,
    *,
    overrides: Mapping[str, object] | None = None,
    progress: bool = True,
    tokens: int | None = None,
) -> list[str]:
    """One summary per dialogue, in the order given.

    The model is in evaluation mode meanwhile (dropout would make summaries random) and in its former mode afterwards.
    Raises `NotEnoughMemory` where one dialogue does not fit.

    Args:
        bundle: The model: base, fully fine-tuned, with an adapter, or merged.
        dialogues: What it reads.
        generation: How it generates.
        overrides: Further arguments of transformers' GenerationConfig, to sample for example.
        progress: Whether to show a bar.
        tokens: The largest batch in tokens, prompts with their padding and new tokens; the machine decides if None.
    """
    base = base_model(bundle.model)
    encoded = bundle.family.encode_all(dialogues)
    remaining = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]["input_ids"]))
    summaries = [""] * len(encoded)
    was_training, own_config = bundle.model.training, base.generation_config
    bundle.model.eval()
    # Set on the model, not passed to generate: that would fill in what the checkpoint says besides.
    base.generation_config = generation_config(bundle, generation, **(overrides or {}))
    bar = tqdm(total=len(remaining), desc="summaries", file=sys.stdout, disable=not progress, mininterval=1)
    try:
        with batch_generator_class(bundle)(bundle, generation) as generate:
            generate.tokens = tokens or generate.tokens
            while remaining:
                longest = len(encoded[remaining[0]]["input_ids"]) + generation.max_new_tokens
                batch = remaining[: max(1, generate.tokens // longest)]
                ids = generate([encoded[number] for number in batch])
                texts = bundle.tokenizer.batch_decode(ids, skip_special_tokens=True)
                for number, text in zip(batch, texts, strict=True):
                    summaries[number] = text.strip()
                del remaining[: len(batch)]
                bar.update(len(batch))
    finally:
        bar.close()
        base.generation_config = own_config
        bundle.model.train(was_training)
    return summaries


def generation_config(bundle: ModelBundle, generation: Generation, **overrides: Any) -> GenerationConfig:
    """The settings with the special tokens of the model, and no sampling unless an override asks for it."""
    own = base_model(bundle.model).generation_config
    tokens = {name: getattr(own, name) for name in _TOKENS if getattr(own, name, None) is not None}
    ends, end = tokens.get("eos_token_id", []), bundle.tokenizer.eos_token_id  # the last is what training teaches
    ends = ends if isinstance(ends, list) else [ends]
    if end not in ends:
        tokens["eos_token_id"] = [end, *ends]
    settings = {
        "pad_token_id": bundle.tokenizer.pad_token_id,
        "max_new_tokens": generation.max_new_tokens,
        "num_beams": generation.num_beams,
        "length_penalty": generation.length_penalty if generation.num_beams > 1 else 1.0,  # or generate warns
        "do_sample": False,
        "disable_compile": True,  # generate would compile the model wherever its cache has a fixed size
    }
    return GenerationConfig(**(tokens | settings | overrides))


class BatchGenerator(contextlib.ExitStack):
    """Generates for one batch after another within a `with` block; `tokens` is the largest batch to give it."""

    tokens = 16 * 1024

    def __init__(self, bundle: ModelBundle, generation: Generation) -> None:
        super().__init__()
        self.bundle, self.generation = bundle, generation

    def __enter__(self) -> "BatchGenerator":
        self.enter_context(hardware.autocast(self.bundle.model))
        return self

    def __call__(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        """The generated token ids of each encoded row, without its prompt."""
        batch = self.bundle.family.collate(rows)
        inputs = {name: batch[name].to(self.bundle.model.device) for name in ("input_ids", "attention_mask")}
        prompt_length = inputs["input_ids"].shape[1]
        generated_ids = partial(self.bundle.family.generated_ids, prompt_length=prompt_length)
        size = self.generation.no_repeat_ngram_size
        processors = LogitsProcessorList([NoRepeatedNgram(size, generated_ids)] if size else [])
        return generated_ids(self.generate(inputs, logits_processor=processors)).tolist()

    def generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        """What the model's `generate` returns for `input_ids` and `attention_mask`, both (batch, tokens)."""
        return self.bundle.model.generate(**inputs, **options)


def batch_generator_class(bundle: ModelBundle) -> type[BatchGenerator]:
    """The accelerated generator where it supports the model on this machine, else the plain one."""
    from .acceleration import decoding

    return decoding.AcceleratedGenerator if decoding.supports(bundle) else BatchGenerator


class NoRepeatedNgram(NoRepeatNGramLogitsProcessor):
    """No n-gram of a summary twice in it.

    Transformers' own counts a decoder-only model's prompt as generated: three words of the dialogue could not be used
    again. `generated` gives of token ids (batch, tokens) those that are the summary's.
    """

    def __init__(self, size: int, generated: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(size)
        self._generated = generated

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` (batch, vocabulary) with what would repeat at minus infinity."""
        return super().__call__(self._generated(input_ids), scores)
