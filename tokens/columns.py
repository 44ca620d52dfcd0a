"""Which columns of a table are the sentences of a pair, its label and its negatives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tokens.tables import BadRow, Row

NAMES = {
    "first": "sentence1 sentence_1 sentence_a question1 question_1 text1 text_1 text_a #1_string anchor query question",
    "second": "sentence2 sentence_2 sentence_b question2 question_2 text2 text_2 text_b #2_string positive passage document answer",
    "label": "score label similarity similarity_score relatedness_score is_duplicate gold gold_label quality",
}
TEXT_NAMES = ["text", "sentence", "sentences", "question", "title", "query", "document", "passage", "content", "body"]
SENTENCE_NAMES = {*TEXT_NAMES, *NAMES["first"].split(), *NAMES["second"].split()}
ID_NAMES = ("id", "_id")
ROLE_OF = {name: role for role, names in NAMES.items() for name in names.split()}
NEGATIVE = re.compile(r"negatives?_?\d*")
OPTION = "--columns first=..,second=..,label=.."


TEXT_OPTION = "--columns text=.."


class ColumnsError(ValueError):
    """Columns could be read in more than one way, or in none; the text says which and what settles it."""


@dataclass(frozen=True)
class Columns:
    """Positions of the columns, from 0.

    Attributes:
        first: the first sentence, question, anchor or query.
        second: the second sentence, or the positive.
        label: None for pairs without labels.
        negatives: sentences that do not match the first.
        has_header: whether the first row names the columns.
        label_name: the label column's name in lower case, empty without one.
        width: cells in every row, None if rows may have more than the last column that is read.
    """

    first: int
    second: int
    label: int | None = None
    negatives: list[int] = field(default_factory=list)
    has_header: bool = False
    label_name: str = ""
    width: int | None = None

    @cached_property
    def last(self) -> int:
        """The last column that is read."""
        return max(self.first, self.second, -1 if self.label is None else self.label, *self.negatives)


@dataclass(frozen=True)
class TextColumn:
    """Positions of a column of sentences and of their ids, from 0.

    Attributes:
        text: the sentences.
        id: None for sentences without ids.
        has_header: whether the first row names the columns.
    """

    text: int
    id: int | None = None
    has_header: bool = False

    @cached_property
    def last(self) -> int:
        """The last column that is read."""
        return max(self.text, -1 if self.id is None else self.id)


def find_text_column(header: list[str] | None, sample: Sequence[Row], wanted: str | None = None) -> TextColumn:
    """Find the column of sentences by `wanted`, by the names in the header, or because it is the only one with text.

    Args:
        header: names of the columns, if the format has them.
        sample: the first rows; delimited text may have its header among them.
        wanted: `text=NAME,id=NAME`, names or numbers from 1; the id is optional.

    Raises:
        ColumnsError: if no way or more than one way is possible.
    """
    names, rows = _names_and_rows(header, sample)
    simple = [_simple(name) for name in names]
    ids = [position for position, name in enumerate(simple) if name in ID_NAMES]
    if wanted:
        found, by_name = _wanted_positions(header, names, max(map(len, rows)), wanted, ("text", "id"))
        if len(found["text"]) != 1 or len(found["id"]) > 1:
            raise ColumnsError(f"--columns names {len(found['text'])} columns as text and {len(found['id'])} as id, expected one")
        has_header = header is None and (by_name or _are_names(names, found["text"]))
        return TextColumn(found["text"][0], next(iter(found["id"] or (ids if has_header or header else [])), None), has_header)
    text = [position for position, name in enumerate(simple) if name in TEXT_NAMES]
    named = bool(text)
    if not text and (header is None or len(names) == 1):
        columns = [[row[position] for row in rows if position < len(row)] for position in range(len(names))]
        text = [position for position, cells in enumerate(columns) if not _mostly(cells, is_number)]
    if header is None and not named and _is_header(rows):
        raise ColumnsError(f"row 1 looks like a header of unknown names ({_numbered(names)}); say {TEXT_OPTION}")
    if len(text) != 1:
        raise ColumnsError(f"cannot tell which column has the sentences ({_numbered(names)}); say {TEXT_OPTION}")
    return TextColumn(text[0], next(iter(ids), None) if named else None, header is None and named)


def find_columns(
    header: list[str] | None, sample: Sequence[Row], wanted: str | None = None, bounds: tuple[float, float] = (-1, 5)
) -> Columns:
    """Find the columns by `wanted`, by the names in the header, or by what is in them.

    Args:
        header: names of the columns, if the format has them.
        sample: the first rows; delimited text may have its header among them.
        wanted: `first=NAME,second=NAME,label=NAME,negative=NAME`, names or numbers from 1; label and negatives are optional.
        bounds: the lowest and the highest number that a column of labels without a name may have.

    Raises:
        ColumnsError: if no way or more than one way is possible.
    """
    names, rows = _names_and_rows(header, sample)
    if wanted:
        return _wanted_columns(header, names, rows, wanted)
    named = _named_columns(names)
    if named:
        if named["label"] is None:
            _refuse_unnamed_labels(names, rows if header else rows[1:], named, bounds)
        return Columns(**named, has_header=header is None, width=len(names))
    if header is not None:
        raise ColumnsError(f"no column is called as a sentence is ({_numbered(names)}); say {OPTION}")
    label_names = [position for position, name in enumerate(names) if ROLE_OF.get(_simple(name)) == "label"]
    if label_names and len(rows) > 1:  # a header that names the label alone
        columns = _columns_by_content(rows[1:], bounds)
        if columns.width not in (None, len(names)):
            raise ColumnsError(f"the header has {len(names)} columns, the rows have {columns.width}; give each column a name")
        return replace(columns, has_header=True, label_name=_simple(names[label_names[0]]))
    if _is_header(rows):
        raise ColumnsError(
            f"cannot tell which columns are meant: row 1 looks like a header of unknown names ({_numbered(names)}); say {OPTION}"
        )
    return _columns_by_content(rows, bounds)


def _names_and_rows(header: list[str] | None, sample: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """The cells that may be names of columns, and all good rows of a sample."""
    rows = [cells for _, cells in sample if not isinstance(cells, BadRow)]
    if not rows:
        reason = f"{sample[0][1]}; none of the first {len(sample)} rows can be read" if sample else "the file has no rows"
        raise ColumnsError(reason)
    return header or [cell if isinstance(cell, str) else "" for cell in rows[0]], rows


def _simple(name: str) -> str:
    """sentence_A, "Sentence A" and sentence-a are one name; so are negative1 and negative_1."""
    return re.sub(r"[^a-z0-9#]+", "_", name.strip().lower()).strip("_")


def _named_columns(names: Sequence[str]) -> dict[str, Any] | None:
    """The columns whose names are known, None if the two sentences are not among them."""
    found: dict[str, list[int]] = {"first": [], "second": [], "label": []}
    for position, name in enumerate(names):
        if role := ROLE_OF.get(_simple(name)):
            found[role].append(position)
    if not found["first"] or not found["second"]:
        return None
    for role, positions in found.items():
        if len(positions) > 1:
            options = " or ".join(str(position + 1) for position in positions)
            raise ColumnsError(f"the {role} could be column {options} ({_numbered(names)}); say {OPTION}")
    label = next(iter(found["label"]), None)
    return {
        "first": found["first"][0],
        "second": found["second"][0],
        "label": label,
        "label_name": "" if label is None else _simple(names[label]),
        "negatives": [position for position, name in enumerate(names) if NEGATIVE.fullmatch(_simple(name))],
    }


def _refuse_unnamed_labels(
    names: Sequence[str], rows: Sequence[list[Any]], named: dict[str, Any], bounds: tuple[float, float]
) -> None:
    """Numbers that may be labels are not left out only because their column's name is unknown; different whole ones are ids."""
    roles = [("first", named["first"]), ("second", named["second"]), *(("negative", position) for position in named["negatives"])]
    option = "--columns " + ",".join(f"{role}={names[position]}" for role, position in roles)
    used = [position for _, position in roles]
    for position, name in enumerate(names):
        cells = [row[position] for row in rows if position < len(row)]
        if position in used or not cells or not all(_is_label(cell, bounds) for cell in cells):
            continue
        if len(set(cells)) < len(cells) or not all(re.fullmatch(r"\s*-?\d+\s*", str(cell)) for cell in cells):
            raise ColumnsError(
                f"column {position + 1} {name[:24]!r} holds numbers, but its name is unknown; "
                f"if they are labels say {option},label={position + 1}, if not {option}"
            )


def _wanted_positions(
    header: list[str] | None, names: Sequence[str], width: int, wanted: str, known: Sequence[str]
) -> tuple[dict[str, list[int]], bool]:
    """The positions of the columns in each role by `--columns`, and whether one was given by its name."""
    roles: dict[str, list[int]] = {role: [] for role in known}
    by_name = False
    for part in wanted.split(","):
        role, _, name = (text.strip() for text in part.partition("="))
        if role not in roles or not name:
            expected = [f"{each}=NAME" for each in known]
            raise ColumnsError(f"--columns has {part!r}, expected {', '.join(expected[:-1])} or {expected[-1]}")
        if name in names and (header is not None or not name.isdecimal()):
            roles[role].append(names.index(name))
            by_name = True
        elif name.isdecimal() and 1 <= int(name) <= width:
            roles[role].append(int(name) - 1)
        else:
            raise ColumnsError(f"--columns names {name!r}, which is no column ({_numbered(names)})")
    return roles, by_name


def _wanted_columns(header: list[str] | None, names: Sequence[str], rows: Sequence[list[Any]], wanted: str) -> Columns:
    widths = [len(row) for row in rows]
    width = max(widths, key=widths.count)
    roles, by_name = _wanted_positions(header, names, width, wanted, ("first", "second", "label", "negative"))
    for role in ("first", "second", "label"):
        if len(roles[role]) > 1 or (role != "label" and not roles[role]):
            raise ColumnsError(f"--columns names {len(roles[role])} columns as {role}, expected one")
    label = next(iter(roles["label"]), None)
    if label is None:
        named = _are_names(names, (roles["first"][0], roles["second"][0]))
    else:
        named = label < len(names) and _is_name(names[label])
    first_is_header = header is None and (by_name or named)
    return Columns(
        roles["first"][0],
        roles["second"][0],
        label,
        roles["negative"],
        has_header=first_is_header,
        label_name=_simple(names[label]) if label is not None and (first_is_header or header) else "",
        width=width,
    )


def _are_names(names: Sequence[str], positions: Sequence[int]) -> bool:
    """Whether the first row has known names of columns, such as question1, at all these positions."""
    return all(position < len(names) and _simple(names[position]) in SENTENCE_NAMES for position in positions)


def _is_name(cell: str) -> bool:
    return re.match(r"\s*([-+.,\d]|nan|inf|$)", cell.lower()) is None


def _is_header(rows: Sequence[list[Any]]) -> bool:
    """Whether the first row has a word where all others have a number."""
    return len(rows) > 1 and any(
        isinstance(cell, str) and _is_name(cell) and all(position < len(row) and is_number(row[position]) for row in rows[1:])
        for position, cell in enumerate(rows[0])
    )


def _columns_by_content(rows: Sequence[list[Any]], bounds: tuple[float, float]) -> Columns:
    """Two columns of text are the sentences, a column of numbers within bounds the label; more text columns are negatives."""
    widths = {len(row) for row in rows}
    width = min(widths)
    if len(widths) > 1 and width < 7:  # only files with many columns, such as the STS benchmark's, have some rows with more
        lengths = [len(row) for row in rows]
        width = max(lengths, key=lengths.count)  # of equally frequent ones the first
        rows = [row for row in rows if len(row) == width]
        widths = {width}
    columns = [[row[position] for row in rows] for position in range(width)]
    text = [position for position, cells in enumerate(columns) if not _mostly(cells, is_number)]
    if len(text) > 2 and len(text) != width - 1:
        text = [position for position in text if _mostly(columns[position], lambda cell: len(str(cell).split()) > 1)]
    labels = [position for position, cells in enumerate(columns) if _mostly(cells, lambda cell: _is_label(cell, bounds))]
    if len(labels) > 1:
        labels = [position for position in labels if not _counts(columns[position])]
    numbered = _numbered(rows[0])
    has_numbers = any(is_number(cell) for position in text[2:] for cell in columns[position])  # labels, some of them bad?
    if len(text) < 2 or (len(text) > 2 and (labels or has_numbers)):
        raise ColumnsError(f"cannot tell which columns are the two sentences ({numbered}); say {OPTION}")
    if len(labels) > 1:
        options = " or ".join(str(position + 1) for position in labels)
        raise ColumnsError(f"the label could be column {options} ({numbered}); say {OPTION}")
    if len(text) + len(labels) < width and not labels:
        raise ColumnsError(f"no column looks like a label of {bounds[0]:g} to {bounds[1]:g} ({numbered}); say {OPTION}")
    return Columns(text[0], text[1], next(iter(labels), None), text[2:], width=width if len(widths) == 1 else None)


def _mostly(cells: Sequence[Any], holds: Any) -> bool:
    return sum(bool(holds(cell)) for cell in cells) > len(cells) / 2


def is_number(cell: Any) -> bool:
    """Whether a cell is a number, with a point or a comma."""
    if isinstance(cell, (int, float)):
        return True
    return isinstance(cell, str) and re.fullmatch(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*", cell) is not None


def _is_label(cell: Any, bounds: tuple[float, float]) -> bool:
    """Whether a cell may be a label; numbers with leading zeros are identifiers."""
    if isinstance(cell, str):
        if not is_number(cell) or re.match(r"\s*0\d", cell):
            return False
        cell = float(cell.strip().replace(",", "."))
    return isinstance(cell, (int, float)) and bounds[0] <= cell <= bounds[1]


def _counts(cells: Sequence[Any]) -> bool:
    """Whether cells are an index: whole numbers that go up by one."""
    try:
        numbers = [int(cell) for cell in cells]
    except (TypeError, ValueError, OverflowError):
        return False
    return len(numbers) > 2 and all(number == numbers[0] + i for i, number in enumerate(numbers))


def _numbered(cells: Sequence[Any]) -> str:
    return ", ".join(f"{number} {str(cell)[:24]!r}" for number, cell in enumerate(cells[:12], start=1))
