"""One process makes a run: a lock file beside its `.partial` folder, which the kernel releases with the process."""

import contextlib
from pathlib import Path

import filelock

from . import processes

# Workers that load data inherit the lock; they notice within 5 s that their process was killed (torch's
# MP_STATUS_CHECK_INTERVAL).
WAIT = 6.0

_held: dict[Path, filelock.BaseFileLock] = {}


class RunBusy(RuntimeError):
    """Another process is making the run; the message names its folder and says what to do."""


def hold(partial: Path) -> None:
    """Make the run in `partial` this process's own, until `release` or the process's end; twice is once.

    Of several processes that make it together the first holds it for all.

    Raises:
        RunBusy: Another process has it.
    """
    path = _file(partial)
    if not processes.is_first() or (path in _held and path.exists()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _held[path] = _taken(partial)


def check(partial: Path) -> None:
    """Say at once, before other work, where another process makes the run in `partial`.

    Raises:
        RunBusy: Another process has it.
    """
    path = _file(partial)
    if path.exists() and path not in _held:
        _taken(partial).release()


def release(partial: Path) -> None:
    """Let others have the run, if this process holds it."""
    path = _file(partial)
    if lock := _held.pop(path, None):
        with contextlib.suppress(OSError):  # Windows removes no open file: there an empty one stays
            path.unlink()
        lock.release()


def _file(partial: Path) -> Path:
    return partial.resolve().with_name(f"{partial.name}.lock")


def _taken(partial: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(_file(partial), timeout=WAIT, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunBusy(
            f"Another process is making the run in {partial}. Wait until it is done; of a notebook that was "
            f"interrupted, shut the kernel down. Then the same command goes on."
        ) from None
    return lock
