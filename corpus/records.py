"""The sentences of a corpus with their ids: lines, tables and Parquet, a file or a folder of them, read as a stream."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from tokens.columns import ColumnsError, TextColumn, find_text_column
from tokens.tables import BadRow, Row, Table, first_rows, is_on_hub, is_saved_dataset, open_table, text_lines
from tokens.text_pairs import check_sentence, describe_bad_rows

LINES = re.compile(r"\.(txt|text|lines)(\.gz|\.zst)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Record:
    """A sentence and its id: the row's own, or its number in the corpus, from 0."""

    id: str | int
    text: str


@dataclass(frozen=True)
class Survey:
    """What a corpus holds.

    Attributes:
        rows: sentences.
        skipped: bad rows that are left out.
        identity: a hash of all ids and sentences.
    """

    rows: int
    skipped: int
    identity: str


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder, in the order of their names; no file or folder whose name starts with a dot or an underscore."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [file for file in files if not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)]


class Records:
    """The records of a corpus, each time from the first."""

    def __init__(self, source: str, columns: str | None = None, *, skip_bad_rows: bool = False) -> None:
        """Find the files.

        Args:
            source: text with a sentence a line (.txt), a table in any form that `tables.open_table` opens, or a folder of these.
            columns: `text=NAME,id=NAME`, names or numbers from 1; by default they are told from the content.
            skip_bad_rows: leave bad rows out; by default they are an error.

        Raises:
            InputError: if there are no files, or none of them has the columns.
        """
        self.columns, self.skip_bad_rows = columns, skip_bad_rows
        path = Path(source)
        self.sources = [source]
        if not is_on_hub(source) and path.is_dir() and not is_saved_dataset(path):
            self.sources = [str(file) for file in visible_files(path)]
        if not self.sources:
            raise InputError("holds no files, expected text or tables", path=path)
        if columns and all(map(LINES.search, self.sources)):
            raise InputError("has a sentence a line, no columns; leave out --columns, or name a table .csv or .tsv", path=path)

    def survey(self) -> Survey:
        """Read everything once.

        Raises:
            InputError: if a file cannot be read, has bad rows, there is no sentence at all, or only some files have ids.
        """
        identity, rows, skipped, kinds = hashlib.blake2b(digest_size=16), 0, 0, set()
        for record in self._read():
            if isinstance(record, BadRow):
                skipped += 1
                continue
            rows += 1
            kinds.add(type(record.id))
            identity.update(f"{record.id!r}\0{record.text}\0".encode())
        if not rows:
            raise InputError("no sentences, expected one a row", path=self.sources[0])
        if len(kinds) > 1:
            raise InputError(
                "some files have ids and others none; encode them to folders of their own", path=Path(self.sources[0]).parent
            )
        return Survey(rows, skipped, identity.hexdigest())

    def __iter__(self) -> Iterator[Record]:
        for record in self._read():
            if isinstance(record, Record):
                yield record

    def _read(self) -> Iterator[Record | BadRow]:
        number = 0
        for source in self.sources:
            bad: list[tuple[int, str]] = []
            for line, record in self._read_file(source, number):
                if isinstance(record, BadRow) and not self.skip_bad_rows:
                    bad.append((line, record))
                    continue
                number += isinstance(record, Record)
                yield record
            if bad:
                raise InputError(describe_bad_rows(bad), path=source, line=bad[0][0])

    def _read_file(self, source: str, first: int) -> Iterator[tuple[int, Record | BadRow]]:
        """Lines and records of a file; those without ids are numbered from `first`."""
        if LINES.search(source) and Path(source).is_file():
            rows: Iterator[Row] = _lines(Path(source))
            column = TextColumn(0)
        else:
            table, column = self._open(source)
            rows = table.rows
        is_header = column.has_header
        for line, cells in rows:
            if is_header and not isinstance(cells, BadRow):
                is_header = False
                continue
            record = _record(cells, column, first)
            first += isinstance(record, Record)
            yield line, record

    def _open(self, source: str) -> tuple[Table, TextColumn]:
        """The table in the first dialect in which its text is found."""
        problems: list[InputError] = []
        for candidate in open_table(source):
            try:
                sample, table = first_rows(candidate)
                return table, find_text_column(table.header, sample, self.columns)
            except ColumnsError as error:
                problems.append(InputError(str(error), path=source, line=1))
            except InputError as error:
                problems.append(error)
        raise problems[0]


def _lines(path: Path) -> Iterator[Row]:
    """The lines of a text as rows of one cell; blank ones at the end are none."""
    blank: list[int] = []
    for number, line in text_lines(path):
        if not line.strip():
            blank.append(number)
            continue
        yield from ((other, BadRow("blank line, expected a sentence")) for other in blank)
        blank.clear()
        yield number, line if isinstance(line, BadRow) else [line.strip()]


def _record(cells: list | BadRow, column: TextColumn, number: int) -> Record | BadRow:
    if isinstance(cells, BadRow):
        return cells
    if len(cells) <= column.last:
        return BadRow(f"{len(cells)} columns, expected {column.last + 1}")
    if problem := check_sentence(cells[column.text], column.text):
        return BadRow(problem)
    if column.id is None:
        return Record(number, cells[column.text])
    if problem := check_sentence(own := str("" if cells[column.id] is None else cells[column.id]), column.id):
        return BadRow(problem.replace("a sentence", "an id"))
    return Record(own, cells[column.text])
