"""Sentence pairs from tables of any form: two sentences, a label brought onto 0-5, negatives."""

from __future__ import annotations

import hashlib
import json
import math
import os
from argparse import ArgumentParser
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.errors import InputError
from tokens.columns import Columns, ColumnsError, find_columns
from tokens.tables import BadRow, Row, Table, first_rows, open_table

MAX_LABEL = 5.0
LOWEST, HIGHEST = -1.0, 5.0  # of all label scales that are recognised
SHOWN = 5  # bad rows that an error lists
FEW = 0.1  # of all rows: labels outside of every scale that may be mistakes, more are of another scale


class OutsideScale(str):
    """That a label is a number, but outside of its scale."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read a table where its content does not say.

    Attributes:
        columns: `first=NAME,second=NAME,label=NAME,negative=NAME`, names or numbers from 1.
        label_range: the lowest and the highest label of the scale.
        skip_bad_rows: leave bad rows out and count them; by default they are an error.
    """

    columns: str | None = None
    label_range: tuple[float, float] | None = None
    skip_bad_rows: bool = False


def add_read_arguments(parser: ArgumentParser) -> None:
    """Add the options of `ReadOptions`."""
    parser.add_argument("--columns", help="columns of tables, by name or number: first=NAME,second=NAME,label=NAME,negative=NAME")
    parser.add_argument(
        "--label_range", metavar="LOW,HIGH", help="scale of the labels in tables, such as 1,5; with = below 0: --label_range=-1,1"
    )
    parser.add_argument("--skip_bad_rows", action="store_true", help="leave out bad rows of tables and count them")


def read_options(options: Any) -> ReadOptions:
    """The options of `add_read_arguments`.

    Raises:
        InputError: if --label_range is not two numbers, the first below the second.
    """
    label_range = None
    if options.label_range is not None:
        try:
            low, high = map(float, str(options.label_range).strip("[]()").split(","))
        except ValueError:
            low, high = 0.0, 0.0
        if not low < high:
            raise InputError(f"--label_range is {options.label_range}, expected LOW,HIGH such as 1,5")
        label_range = (low, high)
    return ReadOptions(options.columns, label_range, options.skip_bad_rows)


@dataclass(frozen=True)
class TextPairs:
    """n sentence pairs as text.

    Attributes:
        first: the first sentences.
        second: the second sentences.
        labels: `(n,)`, float32, similarity 0-5; 5 for every pair without a label.
        negatives: per pair the sentences that do not match its first one, equally many each; empty without any.
        has_labels: whether the labels were read.
        scale: what the labels were taken for and why; empty without labels, or if they reach from 0 to 5.
        skipped: bad rows that were left out.
    """

    first: list[str]
    second: list[str]
    labels: np.ndarray
    negatives: list[list[str]] = field(default_factory=list)
    has_labels: bool = True
    scale: str = ""
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.first)

    def identity(self) -> str:
        """A hash of the sentences and the labels."""
        text = hashlib.blake2b(json.dumps([self.first, self.second]).encode(), digest_size=16)
        text.update(np.ascontiguousarray(self.labels).data)
        return text.hexdigest()

    def count_shared(self, others: TextPairs) -> int:
        """How many of the pairs are among others as well, in either order."""
        known = {frozenset(pair) for pair in zip(others.first, others.second, strict=True)}
        return sum(frozenset(pair) in known for pair in zip(self.first, self.second, strict=True))


def read_text_pairs(source: str | os.PathLike[str], options: ReadOptions = ReadOptions(), *, has_options: bool = True) -> TextPairs:
    """Read sentence pairs from a table in any form that `tables.open_table` opens.

    Args:
        source: the table.
        options: how to read it.
        has_options: whether errors advise these options; a file of a fixed form has none.

    Raises:
        InputError: if it cannot be told which columns are meant, labels contradict their scale, or rows are bad: empty
            sentences, missing cells, non-numeric labels. The message lists the first five and counts all.
    """
    table, columns = _open(source, options)
    first: list[str] = []
    second: list[str] = []
    negatives: list[list[str]] = []
    labels, numbers = array("d"), array("q")  # of the rows that are kept
    bad: list[tuple[int, str]] = []
    for number, cells in _rows_after_header(table, columns):
        problem, label = _check(cells, columns, options)
        if problem:
            bad.append((number, problem))
            continue
        assert not isinstance(cells, BadRow)
        first.append(cells[columns.first])
        second.append(cells[columns.second])
        if columns.negatives:
            negatives.append([cells[position] for position in columns.negatives])
        labels.append(label)
        numbers.append(number)
    outside = [row for row in bad if isinstance(row[1], OutsideScale)]
    if options.label_range is None and len(outside) > FEW * (len(first) + len(bad)):  # to skip them leaves the low labels alone
        number, problem = outside[0]
        others = f", as are {len(outside):,} labels of {len(first) + len(bad):,}" if len(outside) > 1 else ""
        raise InputError(f"{problem}{others}; --label_range LOW,HIGH names another scale", path=source, line=number)
    if bad and not options.skip_bad_rows:
        raise InputError(describe_bad_rows(bad, has_options=has_options), path=source, line=bad[0][0])
    if not first:
        raise InputError("no pairs, expected rows of two sentences", path=source)
    if columns.label is None:
        return TextPairs(first, second, np.full(len(first), MAX_LABEL, np.float32), negatives, has_labels=False, skipped=len(bad))
    values = np.array(labels)
    low, high, why = _scale(values, columns.label_name, options.label_range)
    misfits = np.flatnonzero((values < low) | (values > high))
    if len(misfits):
        raise InputError(
            f"label {values[misfits[0]]:g} does not fit the others, which are taken as {low:g} to {high:g} because {why}; fix it, "
            "or say --label_range LOW,HIGH",
            path=source,
            line=numbers[misfits[0]],
        )
    on_scale = (values if (low, high) == (0, MAX_LABEL) else (values - low) / (high - low) * MAX_LABEL).astype(np.float32)
    obvious = options.label_range is None and (low, high) == (values.min(), values.max()) == (0, MAX_LABEL)
    scale = "" if obvious else f"labels are read as {low:g} to {high:g} because {why}"
    return TextPairs(first, second, on_scale, negatives, scale=scale, skipped=len(bad))


def _open(source: str | os.PathLike[str], options: ReadOptions) -> tuple[Table, Columns]:
    """The table in the dialect in which its columns are found: of several one with a header, then with labels."""
    found: list[tuple[tuple[bool, bool, int], Table, Columns]] = []
    problems: list[InputError] = []
    for candidate in open_table(source):
        try:
            sample, table = first_rows(candidate)
            columns = find_columns(table.header, sample, options.columns, options.label_range or (LOWEST, HIGHEST))
        except ColumnsError as error:
            problems.append(InputError(str(error), path=source, line=1))
            continue
        except InputError as error:
            problems.append(error)
            continue
        spaced = sum(str(cell).startswith(" ") for _, cells in sample if isinstance(cells, list) for cell in cells)
        found.append(((columns.has_header, columns.label is not None, -spaced), table, columns))  # commas of prose have a space
    if not found:
        raise problems[0]
    _, table, columns = max(found, key=lambda way: way[0])  # the first of equal ones
    return table, columns


def _rows_after_header(table: Table, columns: Columns) -> Iterator[Row]:
    is_header = columns.has_header
    for row in table.rows:
        if is_header and not isinstance(row[1], BadRow):
            is_header = False
        else:
            yield row


def _check(cells: list[Any] | BadRow, columns: Columns, options: ReadOptions) -> tuple[str, float]:
    """What is wrong with a row, empty if nothing; and its label."""
    if isinstance(cells, BadRow):
        return str(cells), 0.0
    if len(cells) <= columns.last or (columns.width is not None and len(cells) != columns.width):
        return f"{len(cells)} columns, expected {columns.width or columns.last + 1}", 0.0
    for position in (columns.first, columns.second, *columns.negatives):
        if problem := check_sentence(cells[position], position):
            return problem, 0.0
    if columns.label is None:
        return "", 0.0
    return parse_label(cells[columns.label], options.label_range or (LOWEST, HIGHEST))


def check_sentence(cell: Any, position: int) -> str:
    """What is wrong with a sentence in the column at a position from 0, empty if nothing."""
    if not isinstance(cell, str) or not cell.strip():
        return f"column {position + 1} is {_shown(cell)}, expected a sentence"
    if not cell.isascii() and (character := find_surrogate(cell)) is not None:
        return f"column {position + 1} has {character}, which is half a character, expected Unicode text"
    return ""


def find_surrogate(text: str) -> str | None:
    """The first lone surrogate of a text, which no tokenizer takes, as `\\ud800`; None without one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return None


def _shown(cell: Any) -> str:
    return "empty" if cell is None or (isinstance(cell, str) and not cell.strip()) else f"{cell!r:.40}"


def parse_label(cell: Any, bounds: tuple[float, float]) -> tuple[str, float]:
    """What is wrong with a label of a scale, empty if nothing; and its value, 0 if it has none."""
    text = cell if isinstance(cell, (int, float)) else str(cell).strip()
    if isinstance(text, str) and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")  # 3,5
    try:
        label = float(text) if not isinstance(text, str) or "_" not in text else math.nan
    except (ValueError, OverflowError):
        label = math.nan
    if math.isnan(label):
        return f"label {_shown(cell)} is not a number", 0.0
    if not bounds[0] <= label <= bounds[1]:
        return OutsideScale(f"label {text} is out of range, expected {bounds[0]:g} to {bounds[1]:g}"), 0.0
    return "", label


def describe_bad_rows(bad: Sequence[tuple[int, str]], *, has_options: bool = True) -> str:
    """What is wrong with the first of some bad rows, lines and problems; if there are more, their number and the next four.

    Args:
        bad: lines and problems.
        has_options: whether the options of `ReadOptions` hold for the file, and may be advised.
    """
    message = bad[0][1]
    if has_options and isinstance(bad[0][1], OutsideScale):
        message += "; --label_range LOW,HIGH names another scale"
    if len(bad) > 1:
        others = "; ".join(f"line {number}: {problem}" for number, problem in bad[1:SHOWN])
        message += f"; {len(bad):,} bad rows in all ({others}{', ...' if len(bad) > SHOWN else ''})"
        message += "; --skip_bad_rows leaves them out" if has_options else ""
    return message


def _scale(labels: np.ndarray, name: str, given: tuple[float, float] | None) -> tuple[float, float, str]:
    """The lowest and the highest label of the scale, and why it is that one."""
    if given is not None:
        return *given, "--label_range says so"
    if labels.min() < 0:
        return -1, 1, "some are below 0"
    if set(np.unique(labels)) <= {0, 1}:
        return 0, 1, "each is 0 or 1"
    if labels.max() <= 1:
        return 0, 1, "none is above 1"
    if name == "relatedness_score" and labels.min() >= 1:
        return 1, 5, "SICK's relatedness_score begins at 1"
    return 0, 5, "some are above 1"
