"""Rows of tables as people have them: any delimiter, JSON lines, Parquet, Hugging Face datasets, compressed or not.

A format is recognised by its content. Delimited text is parsed by Python's csv and json modules, which say which line a
row comes from; Parquet and zstd by pyarrow, datasets by their own library, each imported only if it is needed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from common.errors import InputError
from common.optional import import_optional

AN_OBJECT = 'expected an object per line, such as {"text": "A cat."}'
SAMPLE_LINES = 500  # looked at to find delimiter, quotes and columns
HUB_PREFIX = "hf:"
GZIP, ZSTD, PARQUET, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"PK\x03\x04"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
NUL = "has a NUL byte, as UTF-16 without its byte-order mark has; save the file as UTF-8"
NAMED_DELIMITER = re.compile(r"sep=[^\r\n]\r?\n?", re.IGNORECASE)  # Excel's first line
JSON_ARRAY_START = re.compile(r"\s*\[\s*\{")
JSON_START = re.compile(r'\s*(\{\s*("|\}|$)|\[\s*("|\[|\{|\]|$|null|-?[\d.eE+-]+\s*,))')  # not "[Music] A song." nor "[1] A note."

# Of the whole process: one cell above the usual 131,072 characters made a file unreadable. Without any limit, a quote that is never
# closed would take the rest of the file into memory.
csv.field_size_limit(10_000_000)


class BadRow(str):
    """What is wrong with a row and what was expected."""


Row = tuple[int, list[Any] | BadRow]


@dataclass(frozen=True)
class Table:
    """A table whose rows are read as they are asked for.

    Attributes:
        header: names of the columns, if the format has them; delimited text may have a header as its first row instead.
        rows: numbers of lines (of rows in Parquet, datasets and JSON arrays), from 1, and cells.
    """

    header: list[str] | None
    rows: Iterator[Row]


def is_on_hub(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a dataset of the Hugging Face hub: `hf:NAME[/CONFIG][:SPLIT]`."""
    return os.fspath(source).startswith(HUB_PREFIX)


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was saved by the datasets library."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def open_table(source: str | os.PathLike[str]) -> list[Table]:
    """Open a table; of delimited text every way to split its rows that fits, the likeliest first.

    Raises:
        InputError: if there is no such file, it is damaged, or a library that it needs is not installed.
    """
    if is_on_hub(source) or is_saved_dataset(Path(source)):
        return [_dataset(os.fspath(source))]
    path = Path(source)
    with open_bytes(path) as file, raising_damage(path, lambda: 1):
        start = _peek(file)
    text = start.decode("utf-16" if start[:2] in UTF16 else "utf-8-sig", errors="ignore")
    return next((read(path) for is_format, read in FORMATS if is_format(start, text)), None) or _delimited(path)


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, compressed with gzip or zstd or not, as bytes.

    Raises:
        InputError: if there is no such file.
    """
    if not path.is_file():
        raise InputError("is a folder, expected a file" if path.is_dir() else "no such file; check the path", path=path)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(GZIP):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if magic == ZSTD:
        return cast(BinaryIO, io.BufferedReader(import_pyarrow().input_stream(str(path), compression="zstd")))
    return path.open("rb")


@contextmanager
def raising_damage(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Turn what damaged compression or UTF-16 raises into an InputError at a line; other errors pass."""
    try:
        yield
    except UnicodeError as error:
        raise InputError("not UTF-16 as its byte-order mark says; save it as UTF-8", path=path, line=line()) from error
    except (EOFError, OSError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"damaged compression ({error}); compress it again", path=path, line=line()) from error


def text_lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """The lines of a text file, with their ends, without a byte-order mark: UTF-8, or UTF-16 if a mark says so.

    Raises:
        InputError: if the compression or the UTF-16 is damaged.
    """
    number = 0
    with open_bytes(path) as file, raising_damage(path, lambda: number + 1):
        if _peek(file)[:2] in UTF16:
            for number, text in enumerate(io.TextIOWrapper(file, "utf-16", newline="\n"), start=1):
                yield number, text
            return
        for number, line in enumerate(file, start=1):
            if b"\0" in line:
                yield number, BadRow(NUL)
                continue
            try:
                yield number, (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, BadRow(f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8")


def _peek(file: BinaryIO) -> bytes:
    return cast(io.BufferedReader, file).peek(64)


def _delimited(path: Path) -> list[Table]:
    """A table per dialect that gives the sample two columns or more, those with the most regular rows first; else one column."""
    sample = [line for _, line in islice(text_lines(path), SAMPLE_LINES)]
    first = 2 if sample and NAMED_DELIMITER.fullmatch(sample[0]) else 1  # the line on which rows begin
    sample = sample[first - 1 :]
    text = [line for line in sample if not isinstance(line, BadRow)]
    if any("\\" in line for line in text) and all(_is_json_string(line) for line in text if line.strip()):
        # without escapes it is a column of CSV too
        raise InputError(f"each line is a JSON string, {AN_OBJECT}", path=path, line=first)
    regular: dict[tuple[str, bool], float] = {}
    for dialect in (("\t", False), ("\t", True), (",", True), (";", True)):
        widths: list[int] = []
        try:
            widths.extend(len(row) for row in _split(iter(text), *dialect) if any(cell.strip() for cell in row))
        except csv.Error:  # reading it says on which line
            widths.extend([0] * (len(sample) < SAMPLE_LINES))  # a longer sample may end between quotes
        if widths and widths[0] > 1 and (dialect != ("\t", True) or _quotes_cells(text)):
            regular[dialect] = sum(width >= widths[0] for width in widths) / len(widths)
    if ("\t", True) in regular:  # cells that are numbers are in quotes: quotes are no part of the text
        regular.pop(("\t", False), None)
    if not regular and _is_quoted_column(text):
        regular[",", True] = 1.0
    best = max(regular.values(), default=0.0)
    dialects = [dialect for dialect, share in regular.items() if share == best] or [("\t", False)]
    return [Table(None, _delimited_rows(path, first, *dialect)) for dialect in dialects]


def _is_json_string(line: str) -> bool:
    try:
        return line.startswith('"') and isinstance(json.loads(line), str)
    except ValueError:
        return False


def _quotes_cells(lines: Sequence[str]) -> bool:
    """Whether numbers or a whole first row stand in double quotes between tabs."""
    cells = [cell for line in lines for cell in line.rstrip("\r\n").split("\t")]
    quoted = [cell[1:-1] for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
    first = lines[0].rstrip("\r\n").split("\t") if lines else []
    return any(re.fullmatch(r"[-+]?[\d.]+", cell) for cell in quoted) or (
        len(first) > 1 and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in first)
    )


def _is_quoted_column(lines: Sequence[str]) -> bool:
    """Whether lines are a CSV file of a single column, some of it in quotes."""
    try:
        widths = [len(row) for row in csv.reader(lines, strict=True)]
    except csv.Error:
        return False
    return max(widths, default=0) == 1 and any(line.startswith('"') for line in lines)


def _split(lines: Iterable[str], delimiter: str, quoted: bool) -> Iterator[list[str]]:
    if quoted:
        return csv.reader(lines, delimiter=delimiter, strict=True)
    return (line.rstrip("\r\n").split(delimiter) for line in lines)


def _delimited_rows(path: Path, start: int, delimiter: str, quoted: bool) -> Iterator[Row]:
    """Rows of delimited text from a line on; a blank line between others is a bad row, blank lines at the end are none."""
    lines = islice(text_lines(path), start - 1, None)
    last, undecodable = 0, {}

    def decoded() -> Iterator[str]:
        nonlocal last
        for last, line in lines:
            if isinstance(line, BadRow):
                undecodable[last] = line
            yield "\n" if isinstance(line, BadRow) else line

    blank: list[int] = []
    try:
        for cells in _split(decoded(), delimiter, quoted):
            bad = None
            if undecodable:
                bad = next(iter(undecodable.values()))
                undecodable.clear()
            if bad is None and not "".join(cells).strip():
                blank.append(start)
            else:
                for number in blank:
                    yield number, BadRow("blank line, expected a row")
                blank.clear()
                yield start, cells if bad is None else bad
            start = last + 1
    except csv.Error as error:
        reason = str(error).split(" - ")[0]  # advice to programmers follows
        raise InputError(
            f"cannot split the row into cells ({reason}); check its quotes and line ends", path=path, line=start
        ) from error


def _json_lines(path: Path) -> Table:
    """A JSON object or array per line, all as the first; the keys of the sample's objects name the columns."""
    header: list[str] | None = None

    def parse(line: str | BadRow) -> Any:
        if isinstance(line, BadRow):
            return line
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "too deeply nested")
            return BadRow(f"not JSON ({reason}), expected an object or array per line")

    def rows(records: Iterable[tuple[int, str | BadRow]]) -> Iterator[Row]:
        blank: list[int] = []
        for number, line in records:
            if not line.strip():
                blank.append(number)
                continue
            yield from ((other, BadRow("blank line, expected a row")) for other in blank)
            blank = []
            yield number, _cells(parse(line), header)

    sample = [parse(line) for _, line in islice(text_lines(path), SAMPLE_LINES) if line.strip()]
    if len(sample) == 1 and isinstance(sample[0], list) and len(sample[0]) > 2 and all(type(cell) is str for cell in sample[0]):
        raise InputError(f"the whole file is one array of strings, {AN_OBJECT}", path=path, line=1)
    if sample and isinstance(sample[0], dict):
        header = _keys(sample)
    return Table(header, rows(text_lines(path)))


def _json_array(path: Path) -> Table:
    """One JSON array of objects, read at once; the keys of the sample's objects name the columns."""
    lines = []
    for number, line in text_lines(path):
        if isinstance(line, BadRow):
            raise InputError(line, path=path, line=number)
        lines.append(line)
    try:
        records = json.loads("".join(lines))
    except (ValueError, RecursionError) as error:
        reason, number = getattr(error, "msg", "too deeply nested"), getattr(error, "lineno", 1)
        raise InputError(f"not JSON ({reason}), expected one array of objects", path=path, line=number) from error
    header = _keys(records[:SAMPLE_LINES])
    return Table(header, ((number, _cells(record, header)) for number, record in enumerate(records, start=1)))


def _keys(records: Iterable[Any]) -> list[str]:
    """The keys of all objects in order of appearance: the first object alone may lack one."""
    return list(dict.fromkeys(name for record in records if isinstance(record, dict) for name in record))


def _cells(record: Any, header: list[str] | None) -> list[Any] | BadRow:
    if isinstance(record, BadRow):
        return record
    if header is None:
        return record if isinstance(record, list) else BadRow("not a JSON array, expected one as in the first row")
    if not isinstance(record, dict):
        return BadRow("not a JSON object, expected one as in the first row")
    return [record.get(name) for name in header]


def _parquet(path: Path) -> Table:
    parquet = import_pyarrow("pyarrow.parquet")
    damage = (OSError, ValueError, OverflowError, import_pyarrow().ArrowException)
    try:
        file = parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)  # the other way keeps all of it in memory
        names = list(file.schema_arrow.names)
    except damage as error:
        raise InputError(f"damaged Parquet ({_reason(error)}); write it again", path=path) from error

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=4096, use_threads=False):  # they may abort the process as it ends
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, list(cells)
        except damage as error:
            raise InputError(f"damaged Parquet ({_reason(error)}); write it again", path=path, line=number + 1) from error

    return Table(names, rows())


def _zip(path: Path) -> list[Table]:
    raise InputError("is an Excel workbook or another zip file, expected a table; save it as CSV", path=path)


def _dataset(source: str) -> Table:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{source} needs the datasets library: pip install datasets") from error
    name, split = source, None
    if is_on_hub(source):
        name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    try:
        if is_saved_dataset(Path(name)):
            data: Any = datasets.load_from_disk(name)
        else:
            parts = name.split("/")
            config = parts.pop() if len(parts) == 3 and not Path(name).exists() else None
            data = datasets.load_dataset("/".join(parts), config)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load {source}: {_reason(error)}") from error
    if isinstance(data, dict):
        split = split or ("train" if "train" in data else next(iter(data)))
        if split not in data:
            raise InputError(f"{source} has no split {split!r}, expected one of {', '.join(data)}")
        data = data[split]
    return Table(list(data.column_names), ((number, list(row.values())) for number, row in enumerate(data, start=1)))


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def import_pyarrow(module: str = "pyarrow") -> Any:
    """pyarrow or one of its modules.

    Raises:
        InputError: if it is not installed.
    """
    return import_optional(module, "Parquet and zstd need pyarrow: pip install pyarrow")


def first_rows(table: Table, count: int = SAMPLE_LINES) -> tuple[list[Row], Table]:
    """The first rows, and a table that has them still."""
    sample = list(islice(table.rows, count))
    return sample, Table(table.header, chain(sample, table.rows))


# Whether the first bytes of a file, and the text they are, belong to a format; and its reader. Delimited text is what is left.
FORMATS: list[tuple[Callable[[bytes, str], bool], Callable[[Path], list[Table]]]] = [
    (lambda start, text: start[:4] == PARQUET, lambda path: [_parquet(path)]),
    (lambda start, text: start[:4] == ZIP, _zip),
    (lambda start, text: JSON_ARRAY_START.match(text) is not None, lambda path: [_json_array(path)]),
    (lambda start, text: JSON_START.match(text) is not None, lambda path: [_json_lines(path)]),
]
