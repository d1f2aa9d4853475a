"""Files that are written whole or not at all, that are cut short, that one process has to itself."""

import contextlib
import csv
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import filelock
import pandas as pd
import safetensors

from .errors import UserError

_LOCK_SECONDS = 6.0  # data-loading workers inherit a killed process's lock; they notice within 5 s


def to_json(content: Mapping[str, object], indent: int | None = None) -> str:
    """JSON by its standard, which has neither NaN nor infinity: null stands for them."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(finite, indent=indent, allow_nan=False)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON under a temporary name, and move it into place."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(to_json(content, indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write CSV in UTF-8 with LF lines under a temporary name, and move it into place."""
    temporary = path.with_suffix(".partial")
    table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    os.replace(temporary, path)


def find_corrupt_file(folder: Path) -> Path | None:
    """The first file directly in a folder that is not a whole safetensors, JSON or PyTorch file; None if all are."""
    for path in sorted(filter(Path.is_file, folder.iterdir())):
        try:
            _read(path)
        except (safetensors.SafetensorError, ValueError, OSError, zipfile.BadZipFile):
            return path
    return None


def _read(path: Path) -> None:
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt"):
            pass
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix in (".pt", ".pth"):  # zip archives with checksums; nothing in them is run
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise zipfile.BadZipFile


def set_aside(path: Path, folder: Path) -> Path:
    """Move a file or folder into `folder`, with `.damaged` behind its name, replacing one set aside before."""
    aside = folder / f"{path.name}.damaged"
    shutil.rmtree(aside, ignore_errors=True)
    return path.replace(aside)


def require_writable(folder: Path, remedy: str = "Name another folder: --outputs, or OUTPUTS in a notebook.") -> None:
    """Make a folder, and raise `UserError` with a remedy where files cannot be written into it, or the disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 14))
            probe.flush()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. {remedy}") from None


def lock_run(tmp_dir: Path) -> filelock.BaseFileLock | None:
    """Make the run in `tmp_dir` this process's own until the lock is released; locking it twice is locking it once.

    None, and a line that says so, where the drive has no locks. Raises `UserError` where another process
    is making the run, or the folder cannot be written.
    """
    require_writable(tmp_dir.parent)
    path = tmp_dir.resolve().with_name(f"{tmp_dir.name}.lock")
    lock = filelock.FileLock(path, timeout=_LOCK_SECONDS, thread_local=False, is_singleton=True)
    try:
        return lock.acquire().lock
    except filelock.Timeout:
        remedy = "Wait until it is done; of an interrupted notebook, shut the kernel down. The same command resumes."
        raise UserError(f"Another process is making the run in {tmp_dir}. {remedy}") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        print(f"{tmp_dir.parent}: the drive has no locks ({error.strerror}). Let no other process make the same run.")
        return None


def unlock(lock: filelock.BaseFileLock | None) -> None:
    """Let other processes have the run."""
    if lock:
        with contextlib.suppress(OSError):  # Windows does not delete open files: an empty one stays
            Path(lock.lock_file).unlink()
        lock.release(force=True)
