"""Files that a kill, a full disk or a copy has cut short: found before they are used, and set aside."""

import json
import shutil
import zipfile
from pathlib import Path

import safetensors

CHECKPOINT = ("trainer_state.json", "optimizer.pt", "scheduler.pt")  # what Trainer needs to go on, beside the weights


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
    if missing := [name for name in CHECKPOINT if not (checkpoint / name).exists()]:
        return f"{missing[0]} is missing"
    if not any(checkpoint.glob("*.safetensors")):
        return "its weights are missing"
    if bad := first(checkpoint):
        return f"{bad.name} is damaged"
    best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")).get("best_model_checkpoint")
    if best and not (checkpoint.parent / Path(best).name).exists():
        return f"the best checkpoint so far, {Path(best).name}, is not there"
    return None
