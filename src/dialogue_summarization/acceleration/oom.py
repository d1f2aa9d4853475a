"""What happens where memory runs out: the same again with less at once."""

from collections.abc import Callable
from typing import Any

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from ..errors import NotEnoughMemory

ADVICE = (
    "Close what else uses the memory, shorten what is read (the experiment's max_prompt_tokens), train an adapter "
    "instead of every weight, or take a smaller model: `study models` lists some."
)


def retry_with_less(attempt: Callable[[int], Any], size: int, smaller: Callable[[int], int]) -> Any:
    """What `attempt(size)` returns; where memory runs out, `attempt(smaller(size))`, and so on.

    accelerate's `find_executable_batch_size` collects garbage at every call, and empties the cache while the error
    still holds what the attempt had computed.
    """
    while True:
        try:
            return attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = smaller(size)
        clear_device_cache(garbage_collection=True)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, also while a CUDA graph was captured, whose end then fails in its own way."""
    if isinstance(error, NotEnoughMemory):
        return False
    return any(cause is not None and should_reduce_batch_size(cause) for cause in (error, error.__context__))
