"""Rows of CSV and JSON lines files in UTF-8; what is damaged or can be read in two ways is an error that says where."""

import csv
import io
import itertools
import json
import re
from pathlib import Path

from .errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl")  # in upper case too
_WRITTEN_LIST = re.compile(r"\s*(\[\s*\]|(array)?[\[{(]+\s*([\"']|np\.|None\b|nan\b).*[\]})])\s*", re.DOTALL)


def read_text(path: Path) -> str:
    """A file's text in UTF-8. Raises `DataError` where it cannot be read or is in another encoding."""
    try:
        return decode(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def decode(content: bytes, where: str | Path) -> str:
    """Bytes in UTF-8 as text. Raises `DataError`, which names the line."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{where}, line {line}: not UTF-8. Save the file with the encoding UTF-8.") from None


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a file, as its ending says: JSON lines, or fields between commas, semicolons or tabs.

    Raises `DataError`, which names the line or row that cannot be read.
    """
    text = read_text(path)
    return _json_rows(text, path) if path.suffix.lower() == ".jsonl" else _csv_rows(text, path)


def refuse_written_list(text: str, where: str) -> None:
    """Raise `DataError` for a list that was written as text, as pandas writes one into a cell; `where` names it."""
    if _WRITTEN_LIST.fullmatch(text):
        remedy = "Turns are lines of one text; several summaries are rows, or a list in JSON lines."
        raise DataError(f"{where}: a list written as text ({text.strip()[:30]} ...). {remedy}")


def _csv_rows(text: str, path: Path) -> list[dict[str, object]]:
    csv.field_size_limit(1 << 27)
    lines = list(io.StringIO(text, newline=""))
    delimiter = max(",;\t", key=(lines or [""])[0].count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    records: list[list[str]] = []  # the header first
    end = 0  # the line where the record before ended
    try:
        for fields in reader:
            records += [fields] if fields else []
            end = reader.line_num
    except csv.Error as error:
        is_last = "unexpected end" in str(error)
        begun = next(csv.reader(lines[end : None if is_last else reader.line_num - 1] or [""], delimiter=delimiter))
        place = f"{path}, row {len(records)}, line {end + 1}"
        if records and begun:
            place += f", column {records[0][: len(begun)][-1]!r}"
        raise DataError(f"{place}: not CSV ({error}). Close the quote, or double it within a text.") from None
    columns, *others = records or [[]]
    columns = [name.strip() for name in columns]
    if columns in others:
        raise DataError(f"{path}, row {others.index(columns) + 1}: the header again. Remove the row.")
    lower = [name.lower() for name in columns]
    if twice := [name for name in columns if name and lower.count(name.lower()) > 1]:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice. Rename or remove one.")
    rows = [dict(itertools.zip_longest(columns, fields)) for fields in others]
    for number, row in enumerate(rows, 1):
        if None in row:  # the name of further fields
            raise DataError(f"{path}, row {number}: more fields than the header has. Quote what holds {delimiter!r}.")
        _refuse_swallowed_rows(row, delimiter, f"{path}, row {number}")
    return rows


def _refuse_swallowed_rows(row: dict[str, object], delimiter: str, where: str) -> None:
    """Raise `DataError` where a field holds what looks like another row: a line that begins with an id and a delimiter.

    That is what an unclosed quote leaves, where a later row has a quote too many. Behind a comma in a text is a space.
    """
    first = next(iter(row.values())) or ""
    shape = re.sub(r"[^\W\d_]+", r"[^\\W\\d_]+", re.escape(first))  # other letters, then other digits
    shape = re.sub(r"\d+", r"\\d+", shape)
    row_start = re.compile(rf"[\r\n]({shape}{re.escape(delimiter)}[^\s\d].*)")
    for column, value in row.items():
        if re.search(r"\s", first) is None and (found := row_start.search(value or "")):
            remedy = "Close the quote, or if that is meant, save the file as JSON lines."
            raise DataError(f"{where}, column {column!r}: a line looks like another row ({found[1][:30]}). {remedy}")


def _json_rows(text: str, path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(re.split("\r\n|[\r\n]", text), 1):
        try:
            rows += [json.loads(line, object_pairs_hook=_object)] if line.strip() else []
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise DataError(f"{path}, line {number}: not JSON ({getattr(error, 'msg', error)}).") from None
        if rows and not isinstance(rows[-1], dict):
            raise DataError(f"{path}, line {number}: not a JSON object with id, dialogue and summary.")
    return rows


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return dict(pairs)
