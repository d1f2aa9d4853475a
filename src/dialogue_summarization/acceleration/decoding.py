"""Generation in batches as large as memory allows; for decoder-only models over a cache of fixed size.

Such a cache is not copied as it grows, and on a GPU the pass for each new token is replayed from a CUDA graph.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from .. import hardware
from ..errors import NotEnoughMemory
from ..experiments import Generation
from ..generation import BatchGenerator
from ..models import ModelBundle, base_model
from .compilation import compilation_disabled, fast_steps_available, supports_packing
from .cuda_graphs import CapturedCall
from .memory import device_memory, dims_of, generation_tokens
from .oom import ADVICE, retry_with_less
from .packing import PACKED, attention_for

MAX_TOKENS = {"cuda": 256 * 1024, "cpu": 16 * 1024}  # of a batch: what pads a larger one is computed too
PASSES_BEFORE_CAPTURE = 2  # over the prompt, and the first over one token


def supports(bundle: ModelBundle) -> bool:
    """Whether `AcceleratedGenerator` serves a model here: not for virtual tokens on a CPU, nor on Apple's GPUs."""
    device = hardware.device().type
    return device == "cuda" or (device == "cpu" and supports_packing(bundle.model))


class AcceleratedGenerator(BatchGenerator):
    """The plain one with a budget by the memory; where that runs out, it generates for half as many at once."""

    def __init__(self, bundle: ModelBundle, generation: Generation) -> None:
        super().__init__(bundle, generation)
        config = bundle.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = config.hidden_size // config.num_attention_heads
        key_bytes = 2 * config.num_hidden_layers * heads * head_size * 4  # keys and values per token, in fp32
        tokens = generation_tokens(device_memory(), dims_of(bundle.model), key_bytes, generation.num_beams)
        most = MAX_TOKENS["cpu"] // generation.num_beams if hardware.device().type == "cpu" else MAX_TOKENS["cuda"]
        self.tokens = min(tokens, most)

    def __enter__(self) -> "AcceleratedGenerator":
        self.enter_context(compilation_disabled(self.bundle.model))
        self.enter_context(inference_precision(self.bundle.model))
        return self

    def __call__(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        """The generated token ids of each row. Raises `NotEnoughMemory` where one row does not fit."""
        generated: list[list[int]] = []
        generate = super().__call__

        def attempt(size: int) -> list[list[int]]:
            while len(generated) < len(rows):
                generated.extend(generate(rows[len(generated) :][:size]))
            return generated

        def smaller(size: int) -> int:
            if size == 1:
                raise NotEnoughMemory(f"Out of memory while writing summaries of one dialogue. {ADVICE}")
            half, longest = size // 2, max(len(row["input_ids"]) for row in rows[len(generated) :])
            print(f"\nOut of memory while writing summaries of {size} dialogues at a time: going on with {half}.")
            self.tokens = half * (longest + self.generation.max_new_tokens)
            return half

        return retry_with_less(attempt, len(rows), smaller)

    def generate(self, inputs: dict[str, Tensor], **options: Any) -> Tensor:
        """What the model's `generate` returns, over a cache of fixed size for decoder-only models."""
        base = base_model(self.bundle.model)
        is_fast = hardware.device().type == "cpu" or fast_steps_available()
        if not is_fast or attention_for(base) != PACKED or not supports_packing(self.bundle.model):
            return super().generate(inputs, **options)
        cache = fixed_cache(base, inputs["input_ids"].shape[1], self.generation.max_new_tokens)
        with fast_decoding(base):
            if base.device.type == "cpu" and self.generation.num_beams > 1:
                _read_prompts(base, inputs, cache, self.generation.num_beams)
            return super().generate(inputs, past_key_values=cache, **options)


@contextlib.contextmanager
def inference_precision(model: PreTrainedModel) -> Iterator[None]:
    """Forward passes in `hardware.precision_for` the model, by autocast; one in int8 computes the rest in fp32.

    On a CPU autocast would round every weight again for each token: there weights are rounded once, and restored.
    """
    dtype = _dtype(model)
    rounded, on_cpu = dtype != torch.float32, model.device.type == "cpu"
    weights = [(weight, weight.data) for weight in model.parameters() if rounded and on_cpu]
    try:
        for weight, data in weights:
            weight.data = data.to(dtype)
        with torch.autocast(model.device.type, dtype, enabled=rounded and not on_cpu):
            yield
    finally:
        for weight, data in weights:
            weight.data = data


class FixedLayer(StaticLayer):
    """A layer's cache whose tensors stay in place, as a graph needs it.

    Beams of a dialogue share its prompt: only what was generated after it changes places with them.
    """

    def __init__(self, max_cache_len: int, prompt_length: int, dtype: torch.dtype) -> None:
        super().__init__(max_cache_len)
        self._prompt_length, self._dtype = prompt_length, dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Round once what attention would round at every step."""
        return super().update(key_states.to(self._dtype), value_states.to(self._dtype), *args, **kwargs)

    def repeat(self, count: int) -> None:
        """The states of each sequence so many times in a row."""
        self.keys, self.values = (states.repeat_interleave(count, dim=0) for states in (self.keys, self.values))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for states in (self.keys, self.values):
            generated = states[:, :, self._prompt_length :]
            generated.copy_(generated.index_select(0, beam_idx))


def fixed_cache(model: PreTrainedModel, prompt_length: int, new_tokens: int) -> StaticCache:
    """A cache of fixed size, in the precision of attention."""
    length, dtype = prompt_length + new_tokens, _dtype(model)
    cache = StaticCache(config=model.config, max_cache_len=length)
    cache.layers = [FixedLayer(length, prompt_length, dtype) for _ in cache.layers]
    return cache


def _read_prompts(model: PreTrainedModel, inputs: dict[str, Tensor], cache: StaticCache, num_beams: int) -> None:
    """Fill the cache with all but the last token of each prompt, read once; `generate` would read it for every beam."""
    ids, mask = (inputs[name][:, :-1] for name in ("input_ids", "attention_mask"))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
    for layer in cache.layers:
        layer.repeat(num_beams)


@contextlib.contextmanager
def fast_decoding(model: PreTrainedModel) -> Iterator[None]:
    """Within it one call of `generate` with a `fixed_cache` attends without copies, and on a GPU replays a graph.

    All that decides which token comes next, beams included, stays with `generate`.
    """
    own_attention, own_forward = model.config._attn_implementation, vars(model).get("forward")
    model.set_attn_implementation(PACKED)
    if model.device.type == "cuda":
        model.forward = _graphed(model.forward)
    try:
        yield
    finally:
        model.set_attn_implementation(own_attention)
        vars(model).pop("forward", None)
        if own_forward is not None:  # accelerate's, while the model trains
            model.forward = own_forward


def _dtype(model: PreTrainedModel) -> torch.dtype:
    return torch.float32 if getattr(model, "int8_parameters", 0) else hardware.DTYPES[hardware.precision_for(model)]


def _graphed(forward: Callable[..., Any]) -> Callable[..., Any]:
    passes, graph = itertools.count(), None

    @functools.wraps(forward)  # generate reads its arguments: without logits_to_keep it computes all positions' logits
    def graphed(**inputs: Any) -> Any:
        nonlocal graph
        if next(passes) < PASSES_BEFORE_CAPTURE:
            return forward(**inputs)
        if graph is None:
            graph = CapturedCall(lambda static_inputs: forward(**static_inputs), inputs)
        return graph(inputs)

    return graphed
