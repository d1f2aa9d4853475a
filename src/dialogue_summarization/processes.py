"""A run by several processes, one a GPU: who writes, who does which part, and how they are started.

torchrun numbers the processes in environment variables, which accelerate and Trainer read too. All of them make the
run together; the first alone writes and prints. On a machine without CUDA they are CPU processes, joined by gloo.
"""

import contextlib
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .experiments import ConfigurationError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

Item, Result = TypeVar("Item"), TypeVar("Result")

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # the variable that names a file for it
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TIMEOUT = datetime.timedelta(minutes=30)  # Trainer's `ddp_timeout`


class ProcessFailed(RuntimeError):
    """One of several processes ended early; the message says which and why, or what it said."""


def count() -> int:
    """How many processes make this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def share(batch_size: int, processes: int) -> int:
    """How many dialogues of a step each process has.

    Raises:
        ConfigurationError: They cannot be divided evenly.
    """
    if batch_size % processes:
        fitting = ", ".join(str(number) for number in range(1, batch_size + 1) if batch_size % number == 0)
        raise ConfigurationError(
            f"A step of {batch_size} dialogues cannot be divided among {processes} processes evenly. Its batch size "
            f"takes --gpus {fitting}."
        )
    return batch_size // processes


def join() -> None:
    """Find the other processes and this one's device, where torchrun started several. What is not first falls silent.

    CPU processes share the cores.
    """
    if count() == 1:
        os.environ.pop("LOCAL_RANK", None)  # of a torchrun with one process: accelerate would take it for several
        return
    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", count()))
        torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))))
    PartialState(cpu=on_cpu, timeout=TIMEOUT)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave() -> None:
    """End this process, when all went well and nothing is left to do, where it is one of several.

    NCCL warns of those that do not part. Of gloo's threads one may still run when Python ends, which aborts the process
    ("terminate called without an active exception"): CPU processes end without looking back.
    """
    if count() > 1:
        import torch.distributed

        wait()
        if torch.cuda.is_available():
            torch.distributed.destroy_process_group()
        else:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def wait() -> None:
    """Wait until all processes are here."""
    gather(None)


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process does what is inside before the others do, who find it done."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def gather(value: Result) -> list[Result]:
    """The value of each process, in their order."""
    if count() == 1:
        return [value]
    import torch.distributed

    values: list = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values


def combined(function: Callable[[list[Result]], Result], value: Result | None) -> Result | None:
    """`max`, `sum` or the like over the processes' values; None where one does not know its own."""
    values = gather(value)
    return None if None in values else function(values)


def shared(work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """What `work` makes of the items, one result each, in their order: a process works on every `count()`-th."""
    found: list = [None] * len(items)
    mine = items[rank() :: count()]
    for place, results in enumerate(gather(list(work(mine)) if mine else [])):
        found[place :: count()] = results
    return found


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run Python with these arguments in several processes, by torchrun's own launcher.

    Raises:
        ConfigurationError: There are not so many GPUs.
        ProcessFailed: One ended early. The others were ended too.
    """
    import logging

    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ConfigurationError(f"--gpus {processes}: there are {torch.cuda.device_count()} here.")
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="study", max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    logging.disable()  # the launcher would tell of a failure at length
    handlers = [signal.getsignal(number) for number in SIGNALS]  # the launcher sets its own, and leaves them
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        number, failure = min(error.failures.items(), key=lambda entry: _comes_after_others(entry[1]))
        if failure.exitcode < 0:
            raise ProcessFailed(
                f"Process {number + 1} of {processes} was ended by {failure.signal_name()}. What was finished is kept; "
                f"the same command goes on."
            ) from None
        said = failure.message if isinstance(failure.message, str) else failure.message["message"]
        raise ProcessFailed(said) from None
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(number, handler)


def _comes_after_others(failure: "ProcessFailure") -> tuple[bool, bool, int]:
    """Orders failures by cause and effect: killed, failed (for want of the others, perhaps), ended by the launcher."""
    return failure.exitcode == -signal.SIGTERM, failure.exitcode >= 0, failure.timestamp


def report(error: str) -> None:
    """Leave what went wrong for the launcher, which tells of the process that failed first."""
    about = {"message": error, "extraInfo": {"py_callstack": error, "timestamp": str(int(time.time()))}}
    Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": about}), encoding="utf-8")
