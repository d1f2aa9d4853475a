"""Hashes of files: what a folder holds, wherever it lies and whatever it is called."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .files import SUFFIXES

MODEL_FILES = (".json", ".safetensors", ".jinja", ".model")  # the suffixes of what decides a model


def label(source: str) -> str:
    """What names call a Hub id or a folder: the folder's name and six digits of its content, or the id as it is."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return f"{folder.resolve().name}-{of_folder(folder, MODEL_FILES + SUFFIXES)[:6]}"
    return str(source).strip("./~").replace("/", "--")  # as the Hub's cache has it


def of_folder(folder: Path, suffixes: Sequence[str]) -> str:
    """16 hexadecimal digits of names and contents of the files with these suffixes."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    parts = (path.name + of_file(path.resolve()) for path in files)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def of_file(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256; a file that stays as it is is read once per process."""
    return _of_file(path, path.stat().st_mtime_ns)


@lru_cache
def _of_file(path: Path, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
