"""Files that are written whole or not at all, and files that a kill or a copy has cut short."""

import csv
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import safetensors


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON under a temporary name, and move it into place."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write CSV in UTF-8 with LF lines under a temporary name, and move it into place."""
    temporary = path.with_suffix(".partial")
    table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    os.replace(temporary, path)


def find_corrupt_file(folder: Path) -> Path | None:
    """The first file directly in a folder that is not a whole safetensors, JSON or PyTorch file; None if all are."""
    return next((path for path in sorted(folder.iterdir()) if path.is_file() and not _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt"):
                return True
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        if path.suffix in (".pt", ".pth"):  # zip archives with checksums; nothing in them is run
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
    except (safetensors.SafetensorError, ValueError, OSError, zipfile.BadZipFile):
        return False
    return True


def set_aside(path: Path, folder: Path | None = None) -> Path:
    """Rename a file or folder to end in `.damaged`, beside it or in `folder`, replacing one set aside before."""
    aside = (folder or path.parent) / f"{path.name}.damaged"
    if aside.is_dir():
        shutil.rmtree(aside)
    path.replace(aside)
    return aside
