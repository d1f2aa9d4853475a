"""What this device holds at once: planned beforehand, and halved where memory runs out all the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import datasets
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedModel

from . import hardware, memory
from .hardware import NotEnoughMemory
from .memory import Plan

T = TypeVar("T")
# Of one length, 16 take 8 % less time each than 8 (outputs/benchmarks/at-once-cpu.json); their padding takes it back,
# and they take twice the memory.
MOST_ON_CPU = 8
ADVICE = (
    "Close what else uses the memory, shorten what is read (the experiment's max_prompt_tokens), train an adapter "
    "instead of every weight, or take a smaller model: `study models` lists some."
)


def fits(
    batch_size: int,
    network: PreTrainedModel,
    rows: datasets.Dataset,
    packed: bool = False,
    checkpoints: bool = True,
    parts: int = 1,
) -> Plan:
    """How an effective batch of encoded pairs is held here, for `training_arguments`: see `memory.plan`.

    Of a model whose weights, gradients and optimizer are divided into `parts`, a device holds one.
    A CPU holds few: more are hardly faster there, and padding grows with them.
    """
    shape, lengths = memory.shape_of(network), memory.lengths_of(rows)
    shape = replace(shape, weight_bytes=shape.weight_bytes // parts, trained=shape.trained // parts)
    if hardware.device().type == "cuda":
        return memory.plan(hardware.memory(), batch_size, shape, lengths, packed=packed, checkpoints=checkpoints)
    found = memory.plan(hardware.memory(), batch_size, shape, lengths, checkpoints=False)
    size = memory.divisors(batch_size, min(found.micro_batch, MOST_ON_CPU))[0]
    needed = memory.training_bytes(size, shape, lengths)
    evaluation = memory.divisors(batch_size, min(found.evaluation_batch, 16))[0]
    return Plan(size, batch_size // size, False, evaluation, needed)


def generation_tokens(network: PreTrainedModel, num_beams: int = 1) -> int:
    """How many tokens are in a batch that summaries are written for: `memory.generation_tokens`, no more than pays.

    What pads a large batch is computed too.
    """
    config = network.config.get_text_config()
    size = config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    key_bytes = 2 * config.num_hidden_layers * heads * size * 4
    most = 256 * 1024 if hardware.device().type == "cuda" else 16 * 1024
    return min(most, memory.generation_tokens(hardware.memory(), memory.shape_of(network), key_bytes, num_beams))


def with_less(attempt: Callable[[int], T], size: int, smaller: Callable[[int], int]) -> T:
    """What `attempt(size)` returns; where memory runs out, `attempt(smaller(size))`, and so on.

    accelerate's `find_executable_batch_size` is alike, but collects garbage at every call (0.35 s), and empties the
    cache while the error still holds what the attempt had computed.
    """
    while True:
        try:
            return attempt(size)
        except RuntimeError as error:
            if not _ran_out(error):
                raise
            size = smaller(size)
        clear_device_cache(garbage_collection=True)


def fewer(what: str) -> Callable[[int], int]:
    """For `with_less`: half as many dialogues, said in a line.

    Raises:
        NotEnoughMemory: There is but one.
    """

    def smaller(size: int) -> int:
        if size == 1:
            raise NotEnoughMemory(f"Out of memory while {what} one dialogue. {ADVICE}")
        print(f"\nOut of memory while {what} {size} dialogues at a time: going on with {size // 2}.")
        return size // 2

    return smaller


def _ran_out(error: RuntimeError) -> bool:
    """Whether memory ran out, also while a graph was captured: closing it then fails in its own way."""
    if isinstance(error, NotEnoughMemory):
        return False
    return any(cause is not None and should_reduce_batch_size(cause) for cause in (error, error.__context__))
