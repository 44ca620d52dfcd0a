"""Lines of text files and the pairs in them: `sentence1, sentence2, label`, separated by tabs or commas."""

from __future__ import annotations

import csv
import gzip
import math
import os
import zlib
from collections.abc import Iterator
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
    """Sentence pairs as text: `first[i]` and `second[i]` have the similarity `labels[i]`, 0-5, float32 `(n,)`."""

    first: list[str]
    second: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, gzip-compressed (`.gz`) or not, as bytes.

    Raises:
        InputError: where there is no such file.
    """
    if not path.is_file():
        raise InputError("no such file; check the path" if not path.is_dir() else "is a folder, expected a file", path=path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file with their numbers from 1, without line ends, byte-order mark and blank last lines.

    Raises:
        InputError: for a missing file, a blank line between others, an empty file, damaged compression.
    """
    return _without_blank_end(((number, line.rstrip(b"\r\n")) for number, line in _whole_lines(Path(path))), Path(path))


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """All lines with their ends, without the byte-order mark."""
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
    """Rows with their line numbers but not the blank ones at the end; one between others is an error."""
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
    """Whether a file is named as text pairs are: `.csv` or `.tsv`, perhaps with `.gz`."""
    return path.name.removesuffix(".gz").endswith((".csv", ".tsv"))


def decode(line: bytes, path: str | os.PathLike[str], number: int) -> str:
    """The text of a line, which must be UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8", path=path, line=number
        ) from error


def parse_label(text: str, path: str | os.PathLike[str], number: int) -> float:
    """A label, 0-5."""
    try:
        label = float(text) if "_" not in text else math.nan
    except ValueError:
        label = math.nan
    if math.isnan(label):
        advice = f"; in a header it is called {' or '.join(sorted(HEADER_WORDS))}" if number == 1 else ""
        raise InputError(f"label {text[:40]!r} is not a number, expected 0 to 5{advice}", path=path, line=number)
    if not 0.0 <= label <= MAX_LABEL:
        raise InputError(f"label {text.strip()} is out of range, expected 0 to 5", path=path, line=number)
    return label


def labels_note(labels: np.ndarray) -> str | None:
    """A sentence about labels `(n,)` that look like 0 to 1; None for others."""
    if labels.max() > 1:
        return None
    return (
        f"The largest label is {labels.max():g}, and labels are taken for 0 to 5: multiply similarities of 0 to 1 by 5; "
        "for 1 match, 0 no match there is train_retrieval.py."
    )


def match_note(labels: np.ndarray, match_label: float) -> str | None:
    """A sentence about labels `(n,)` of more than 1, where those from 1 on are taken for matches; None otherwise."""
    if labels.max() <= 1 or match_label != 1:
        return None
    share = (labels >= match_label).mean()
    return f"Labels go up to {labels.max():g}: those from {match_label:g} up, {share:.0%}, are matches (--match_label)."


def read_text_pairs(path: str | os.PathLike[str]) -> TextPairs:
    """Read sentence pairs: three columns, sentence1, sentence2, label.

    Files named `.csv` are separated by commas, with quotes where a sentence has one; all others by tabs, where quotes
    are ordinary characters. A first row whose third column names it (label, score, ...) is a header.

    Raises:
        InputError: for a row without three columns, an empty sentence, or a label that is not a number from 0 to 5.
    """
    path = Path(path)
    is_csv = path.name.removesuffix(".gz").endswith(".csv")
    first: list[str] = []
    second: list[str] = []
    labels: list[float] = []
    for number, row in _csv_rows(path) if is_csv else _tab_rows(path):
        if len(row) != 3:
            separator = "commas" if is_csv else "tabs"
            raise InputError(
                f"{len(row)} columns, expected 3 separated by {separator}: sentence1, sentence2, label",
                path=path,
                line=number,
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
    # The lines keep their ends: within quotes they belong to the sentence.
    rows = csv.reader((decode(line, path, number) for number, line in _whole_lines(path)), strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            reason = str(error).split(" - ")[0]  # what follows is advice to programmers
            raise InputError(
                f"not a row of comma-separated values ({reason}); columns are separated by commas, lines end as on Unix or Windows",
                path=path,
                line=rows.line_num,
            ) from error

    return _without_blank_end(numbered(), path)
