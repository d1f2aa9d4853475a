"""Files that a kill, a full disk or a copy has cut short: found before they are used, and set aside."""

import contextlib
import errno
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

CHECKPOINT = ("trainer_state.json", "optimizer.pt", "scheduler.pt")  # what Trainer needs to go on, beside the weights
SHARDED = (
    "pytorch_model_fsdp_0",
    "optimizer_0",
    "trainer_state.json",
    "scheduler.pt",
)  # with FSDP, as accelerate names

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # disk, file size, quota
_FULL_TEXTS = (*(f"os error {number}" for number in _FULL), "file write failed", "unexpected pos")  # Rust's, PyTorch's


class DiskFull(OSError):
    """A file could not be written for want of room; the message says where and what to do."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write files below a folder, which need not exist yet.

    Raises:
        DiskFull: There was no room, as the system, safetensors or PyTorch say each in their own way.
    """
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        if isinstance(error, DiskFull) or not (full or any(text in str(error) for text in _FULL_TEXTS)):
            raise
        there = next(place for place in (folder, *folder.resolve().parents) if place.exists())
        raise DiskFull(
            f"There is no room to write to {folder} ({shutil.disk_usage(there).free / 2**30:.1f} GiB are free; or is "
            f"it a quota?). Make room, and the same command goes on. Finished records are as they were."
        ) from error


def first(folder: Path) -> Path | None:
    """The first file directly in a folder that is no whole safetensors, JSON or PyTorch file; None where all are.

    PyTorch's are zip archives, whose checksums are read; nothing in them is run.
    """
    return next((path for path in sorted(folder.iterdir()) if path.is_file() and not _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt"):
                return True
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        if path.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
    except (safetensors.SafetensorError, ValueError, OSError, zipfile.BadZipFile):
        return False
    return True


def set_aside(path: Path, folder: Path | None = None) -> Path:
    """Move a file or folder to a name that ends in `.damaged`, beside it or in `folder`, over one set aside before."""
    aside = (folder or path.parent) / f"{path.name}.damaged"
    if aside.is_dir():
        shutil.rmtree(aside)
    path.replace(aside)
    return aside


def clean(partial: Path) -> list[str]:
    """Set aside what an unfinished run cannot go on with, and say so, a line each.

    A checkpoint is of no use where a file of it is missing or damaged, or where the best one that it names is. The
    checkpoints before it are looked through too; where none is left, training begins anew. Checkpoints are moved up
    from where Trainer counts them.
    """
    lines = []
    for name in ("model", "adapter"):
        if (partial / name).exists() and (bad := first(partial / name)):
            lines.append(f"{bad} is damaged: set aside as {set_aside(partial / name).name}.")
    folders = [path for path in (partial / "checkpoints").glob("checkpoint-*") if path.name[11:].isdecimal()]
    for path in sorted(folders, key=lambda path: int(path.name[11:])):
        if reason := _why_useless(path):
            lines.append(f"{path}: {reason}; set aside as {set_aside(path, partial).name}.")
    return lines


def _why_useless(checkpoint: Path) -> str | None:
    sharded = (checkpoint / SHARDED[0]).exists()
    if missing := [name for name in (SHARDED if sharded else CHECKPOINT) if not (checkpoint / name).exists()]:
        return f"{missing[0]} is missing"
    if not sharded and not any(checkpoint.glob("*.safetensors")):
        return "its weights are missing"
    if bad := first(checkpoint):
        return f"{bad.name} is damaged"
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    if state["best_model_checkpoint"]:
        best = checkpoint.parent / Path(state["best_model_checkpoint"]).name
        if not best.exists():
            return f"the best checkpoint so far, {best.name}, is not there"
        if str(best) != state["best_model_checkpoint"]:
            # Moved, or named from another folder: Trainer would take the last weights for the best, without a word.
            file.write_text(json.dumps(state | {"best_model_checkpoint": str(best)}), encoding="utf-8")
    return None
