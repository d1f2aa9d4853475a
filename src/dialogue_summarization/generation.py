"""Write summaries in batches, longest dialogues first, and return them in the order asked for."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from . import decoding, fast, fitting, hardware
from .experiments import Generation
from .models import Model, inference, packs

# What a checkpoint's generation settings may say about its tokens; its sampling settings are left behind.
_TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


@dataclass(frozen=True)
class Sampling:
    """How summaries are drawn at random, by torch's generator, which the caller seeds.

    Tokens less likely than `epsilon` are never drawn (Hewitt et al. 2022, arXiv 2210.15191), among them those that
    label smoothing makes likelier than they are. Freitag et al. (2023, arXiv 2305.09860) found this best for minimum
    Bayes risk; the defaults are theirs.
    """

    temperature: float = 1.0
    epsilon: float = 0.02


class NoRepeatedNgram(LogitsProcessor):
    """No n tokens of a summary twice in it, on the card.

    Transformers' own (`no_repeat_ngram_size`) reads every row in Python at every token, and counts a decoder-only
    model's prompt as written: three words of the dialogue could not be used again.

    Args:
        size: n.
        written: From token ids (rows, tokens) to those of them that are the summary's.
    """

    def __init__(self, size: int, written: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._size, self._written = size, written

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` (rows, vocabulary) with what would repeat at minus infinity."""
        written = self._written(input_ids)
        if written.shape[1] < self._size:
            return scores
        ngrams = written.unfold(1, self._size, 1)
        begun = written[:, written.shape[1] - self._size + 1 :]
        repeats = (ngrams[:, :, :-1] == begun[:, None]).all(-1)
        limits = torch.where(repeats, -torch.inf, torch.inf).to(scores.dtype)
        return scores.scatter_reduce(1, ngrams[:, :, -1], limits, "amin")


def generation_config(model: Model, generation: Generation, sampling: Sampling | None = None) -> GenerationConfig:
    """The experiment's settings with the special tokens of the model, and no sampling but what is asked for."""
    own = model.network.generation_config
    tokens = {name: getattr(own, name) for name in _TOKENS if getattr(own, name, None) is not None}
    drawn = {}
    if sampling:  # generate would keep to the 50 likeliest tokens where top_k is not given
        drawn = {"temperature": sampling.temperature, "epsilon_cutoff": sampling.epsilon, "top_k": 0}
    return GenerationConfig(
        **tokens,
        **drawn,
        pad_token_id=model.tokenizer.pad_token_id,
        max_new_tokens=generation.max_new_tokens,
        num_beams=generation.num_beams,
        length_penalty=generation.length_penalty if generation.num_beams > 1 else 1.0,  # or generate warns
        do_sample=sampling is not None,
        disable_compile=True,  # of a cache of fixed size generate would make an occasion to compile the model
    )


@torch.no_grad()
def summarize(
    model: Model,
    dialogues: Sequence[str],
    generation: Generation,
    *,
    sampling: Sampling | None = None,
    progress: bool = True,
    tokens: int | None = None,
) -> list[str]:
    """One summary a dialogue, in the order given.

    The network is in evaluation mode meanwhile (dropout would make summaries random) and in its former mode afterwards.
    Works for base, fully tuned, adapter and merged models alike.

    Args:
        model: The model that writes.
        dialogues: What it reads.
        generation: How it writes.
        sampling: How it draws, if it does; another division into batches then gives other summaries.
        progress: Whether to show a bar.
        tokens: How many tokens a batch may hold, padding included; the machine decides where it is None. Where memory
            runs out, half as many dialogues are written for at once.

    Raises:
        NotEnoughMemory: One dialogue does not fit.
    """
    base = fast.base_of(model.network)
    encoded = model.family.encode_all(dialogues)
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]["input_ids"]))
    summaries: list[str] = [""] * len(encoded)
    was_training = model.network.training
    model.network.eval()
    # Set on the model, not handed over: generate would fill in what the checkpoint says beside it.
    own, base.generation_config = base.generation_config, generation_config(model, generation, sampling)
    bar = tqdm(total=len(order), desc="summaries", file=sys.stdout, disable=not progress, mininterval=1)

    def write(most: int) -> None:
        """Write what is left, `most` tokens at once."""
        while order:
            chosen = order[: _count(most)]
            batch = model.family.collate([encoded[number] for number in chosen])
            inputs = {name: batch[name].to(model.network.device) for name in ("input_ids", "attention_mask")}
            written = model.family.completion(_generate(model, inputs, generation), inputs["input_ids"].shape[1])
            texts = model.tokenizer.batch_decode(written, skip_special_tokens=True)
            for number, text in zip(chosen, texts, strict=True):
                summaries[number] = text.strip()
            del order[: len(chosen)]
            bar.update(len(chosen))

    def longest() -> int:
        return len(encoded[order[0]]["input_ids"]) + generation.max_new_tokens

    def _count(most: int) -> int:
        return min(len(order), max(1, most // longest()))

    def smaller(most: int) -> int:
        return longest() * fitting.fewer("writing summaries of")(_count(most))

    try:
        with fast.eager(model.network), inference(model.network):
            fitting.with_less(write, tokens or fitting.generation_tokens(model.network, generation.num_beams), smaller)
    finally:
        bar.close()
        base.generation_config = own
        model.network.train(was_training)
    return summaries


def _generate(model: Model, inputs: dict[str, torch.Tensor], generation: Generation) -> torch.Tensor:
    """What `generate` returns; over the cache of module `decoding` where family and machine have it, and its graphs."""
    length = inputs["input_ids"].shape[1]
    processors = LogitsProcessorList()
    if generation.no_repeat_ngram_size:
        written = partial(model.family.completion, prompt_length=length)
        processors.append(NoRepeatedNgram(generation.no_repeat_ngram_size, written))
    own_cache = hardware.writes_over_a_fixed_cache() and model.family.fixed_attention == fast.PACKED
    if not (own_cache and packs(model.network)):
        return model.network.generate(**inputs, logits_processor=processors)
    base = fast.base_of(model.network)
    dtype = torch.bfloat16 if hardware.precision() == "bf16" else torch.float32
    cache = decoding.static_cache(base, length, generation.max_new_tokens, dtype)
    graphed = hardware.fast_steps() and base.device.type == "cuda"
    graphs = decoding.graphed_decoding(base) if graphed else contextlib.nullcontext()
    with decoding.attention(base, fast.PACKED), graphs:
        return model.network.generate(**inputs, logits_processor=processors, past_key_values=cache)
