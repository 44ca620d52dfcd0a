"""Text files of sentence pairs: `sentence1, sentence2, label`, separated by tabs or commas."""

from __future__ import annotations

import csv
import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from common.errors import InputError

MAX_LABEL = 5.0
Row = TypeVar("Row", bytes, list[str])
HEADER_WORDS = {"label", "score", "similarity", "similarity_score", "gold", "is_duplicate"}


@dataclass(frozen=True)
class TextPairs:
    """Sentence pairs as text, with labels `(n,)`, 0-5, float32."""

    first: list[str]
    second: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def open_bytes(path: Path) -> BinaryIO:
    """Open a plain or gzip-compressed (`.gz`) file as bytes.

    Raises:
        InputError: if there is no such file.
    """
    if not path.is_file():
        raise InputError("is a folder, expected a file" if path.is_dir() else "no such file; check the path", path=path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers from 1 and lines, without line ends, byte-order mark, and blank lines at the end.

    Raises:
        InputError: if the file is missing, empty or damaged, or has a blank line between others.
    """
    return _without_blank_end(((number, line.rstrip(b"\r\n")) for number, line in _whole_lines(Path(path))), Path(path))


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers and lines with their ends, without the byte-order mark."""
    number = 0
    with open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"damaged gzip file ({error}), expected one that gzip -t accepts", path=path, line=number + 1
            ) from error


def _without_blank_end(rows: Iterator[tuple[int, Row]], path: Path) -> Iterator[tuple[int, Row]]:
    """Yield rows without the blank ones at the end; a blank row between others is an error."""
    blank = last = 0
    for number, row in rows:
        if any(field.strip() for field in ([row] if isinstance(row, bytes) else row)):
            if blank:
                raise InputError("blank line, expected a row", path=path, line=blank)
            last = number
            yield number, row
        else:
            blank = blank or number
    if not last:
        raise InputError("the file is empty, expected a row on each line", path=path)


def is_text(path: Path) -> bool:
    """Whether a file is named like text pairs: `.csv` or `.tsv`, optionally with `.gz`."""
    return _suffix(path) in FORMATS


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def decode(line: bytes, path: str | os.PathLike[str], number: int) -> str:
    """Decode a line of UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8", path=path, line=number
        ) from error


def parse_label(text: str, path: str | os.PathLike[str], number: int) -> float:
    """Parse a label, 0-5."""
    try:
        label = float(text) if "_" not in text else math.nan
    except ValueError:
        label = math.nan
    if math.isnan(label):
        advice = f"; a header would say {' or '.join(sorted(HEADER_WORDS))}" if number == 1 else ""
        raise InputError(f"label {text[:40]!r} is not a number, expected 0 to 5{advice}", path=path, line=number)
    if not 0.0 <= label <= MAX_LABEL:
        raise InputError(f"label {text.strip()} is out of range, expected 0 to 5", path=path, line=number)
    return label


def labels_note(labels: np.ndarray) -> str | None:
    """Return a warning if labels `(n,)` look like 0 to 1, else None."""
    if labels.max() > 1:
        return None
    return (
        f"The largest label is {labels.max():g}, but labels are read as 0 to 5: multiply similarities of 0 to 1 by 5; "
        "if labels are 1 for a match and 0 otherwise, use train_retrieval.py."
    )


def match_note(labels: np.ndarray, match_label: float) -> str | None:
    """Return a warning if labels `(n,)` exceed 1 while the default `match_label` of 1 is used, else None."""
    if labels.max() <= 1 or match_label != 1:
        return None
    share = (labels >= match_label).mean()
    return f"Labels go up to {labels.max():g}: {share:.0%} are {match_label:g} or more and count as matches (--match_label)."


def read_text_pairs(path: str | os.PathLike[str]) -> TextPairs:
    """Read sentence pairs: three columns, sentence1, sentence2, label.

    `.csv` files are comma-separated with optional quotes; all others are tab-separated, with quotes as ordinary characters.
    A first row whose third column is a name (label, score, ...) is a header.

    Raises:
        InputError: if a row does not have three columns, a sentence is empty, or a label is not a number from 0 to 5.
    """
    path = Path(path)
    rows = FORMATS.get(_suffix(path), _tab_rows)(path)
    first: list[str] = []
    second: list[str] = []
    labels: list[float] = []
    for number, row in rows:
        if len(row) != 3:
            separator = "commas" if _suffix(path) == ".csv" else "tabs"
            raise InputError(
                f"{len(row)} columns, expected 3 separated by {separator}: sentence1, sentence2, label", path=path, line=number
            )
        if not labels and number == 1 and row[2].strip().lower() in HEADER_WORDS:
            continue
        if not row[0].strip() or not row[1].strip():
            raise InputError("empty sentence, expected text in columns 1 and 2", path=path, line=number)
        first.append(row[0])
        second.append(row[1])
        labels.append(parse_label(row[2], path, number))
    if not labels:
        raise InputError("no pairs after the header, expected rows of sentence1, sentence2, label", path=path)
    return TextPairs(first, second, np.array(labels, dtype=np.float32))


def _tab_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        yield number, decode(line, path, number).split("\t")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    # Lines keep their ends, which belong to the sentence within quotes.
    rows = csv.reader((decode(line, path, number) for number, line in _whole_lines(path)), strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            reason = str(error).split(" - ")[0]  # the rest is advice for programmers
            raise InputError(
                f"not a row of comma-separated values ({reason}); separate columns by commas and end lines as on Unix or Windows",
                path=path,
                line=rows.line_num,
            ) from error

    return _without_blank_end(numbered(), path)


FORMATS: dict[str, Callable[[Path], Iterator[tuple[int, list[str]]]]] = {".csv": _csv_rows, ".tsv": _tab_rows}
