"""Several processes, one per GPU, or on a CPU joined by gloo: start and connect them, and divide work between them."""

import datetime
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing.spawn import ProcessException, start_processes

from ..errors import ConfigurationError, UserError


def launch(world_size: int, function: Callable[..., None], *arguments: object) -> None:
    """Call a function in several new processes, which are connected to one another.

    Raises:
        ConfigurationError: There are not so many GPUs.
        UserError: One process was killed, or raised one. The others are ended too.
    """
    if torch.cuda.is_available() and world_size > torch.cuda.device_count():
        raise ConfigurationError(f"--gpus {world_size}: there are {torch.cuda.device_count()} here.")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it says which processes it ends
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # of semaphores that these leave behind
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    given = (world_size, get_free_port(), messages, partial(function, *arguments))
    context = start_processes(_call, given, world_size, join=False)
    try:
        while not context.join():
            pass
    except ProcessException as error:
        if not messages.empty():
            raise UserError(messages.get()) from None
        if (name := getattr(error, "signal_name", None)) is None:
            raise  # a bug, with the traceback
        ended = f"Process {error.error_index + 1} of {world_size} was ended by {name}."
        raise UserError(f"{ended} What was finished is kept. The same command resumes.") from None
    finally:
        for process in context.processes:  # where this process was interrupted
            process.terminate()


def _call(rank: int, world_size: int, port: int, messages: Any, function: Callable[[], None]) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}  # as torchrun sets them
    os.environ |= {"WORLD_SIZE": str(world_size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    # A spawned process spawns others too: each worker of each data loader would import all packages anew, ten seconds
    # each and one after another, whenever an epoch or an evaluation begins. None is Python's own way.
    multiprocessing.set_start_method(None, force=True)
    join()
    try:
        function()
    except UserError as error:
        messages.put(str(error))
        sys.exit(1)
    leave()


def join() -> None:
    """Connect to the other processes, if there are several. All but the main process fall silent."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return
    if torch.cuda.is_available():
        options = {"device_id": torch.device("cuda", int(os.environ["LOCAL_RANK"]))}  # of barriers too
    else:  # the processes share the cores
        options = {"cpu": True}
        threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
        torch.set_num_threads(int(threads))
    timeout = datetime.timedelta(minutes=30)  # Trainer's `ddp_timeout`
    if not PartialState(timeout=timeout, **options).is_main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave() -> None:
    """End this process, when nothing is left to do, if it is one of several."""
    state = PartialState()
    state.wait_for_everyone()
    if torch.cuda.is_available():
        state.destroy_process_group()
    elif state.num_processes > 1:  # one of gloo's threads may still run when Python ends, which aborts the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def all_reduce(function: Callable[[list], Any], value: Any) -> Any:
    """`max`, `sum` or the like over the processes' values; None where one does not know its own."""
    values = gather_object([value])
    return None if None in values else function(values)


def split_between_processes(work: Callable[[list], list], items: list) -> list:
    """What `work` makes of the items, one result each, in their order; each process works on an equal part."""
    with PartialState().split_between_processes(items) as part:
        return gather_object(work(part))[: len(items)]  # where items are few, accelerate repeats the last
