"""Fuzzed text: token embeddings, labels, tables of pairs, recipes, sentences, each next to a slow, obvious reading."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import yaml
from damage import WORDS, Reader, change_bytes, damage, number, split_lines
from pyarrow import parquet

from common.cli import make_parser
from corpus.records import Records
from tokens.dat_files import read_label_file, read_token_file
from tokens.sentence_files import SentenceFiles
from tokens.tables import UTF16
from tokens.text_pairs import read_text_pairs
from training.recipe import CONFIGS, add_recipe_arguments, parse_recipe

DIM = 3


Way = tuple[list[str], list[list[Any]]]  # names of the columns, empty without a header, and rows


class TokenFiles(Reader):
    """Files of token embeddings."""

    def make(self, rng: random.Random) -> bytes:
        rows = []
        for _ in range(rng.randint(1, 3)):
            count = rng.choice((0, 1, 1, 2, 3))
            values = [f"{rng.gauss(0, 1):{rng.choice(('.9g', '.3f', '.17g', '.6e'))}}" for _ in range(count * DIM)]
            if rng.random() < 0.2:
                values[-DIM:] = ["0"] * len(values[-DIM:])
            rows.append(" ".join([str(count), str(DIM), *values]))
        return damage(rng, "\n".join(rows).encode() + b"\n", b" \n")

    def read(self, path: Path) -> Any:
        store = read_token_file(path, dim=DIM, cache_dir=path.parent)
        return [store.sentence(i).tobytes() for i in range(len(store))]

    def expected(self, content: bytes) -> Any:
        sentences = []
        for line in split_lines(content):
            n_tokens, dim, *values = line.split()
            with np.errstate(over="ignore"):
                array = np.array([float(value) for value in values]).astype(np.float32)
            if b"_" in line or int(n_tokens) < 0 or int(dim) != DIM or not np.isfinite(array).all():
                raise ValueError(line)
            rows = array.reshape(int(n_tokens), DIM)
            while len(rows) and not rows[-1].any():
                rows = rows[:-1]
            sentences.append(rows.tobytes())
        return sentences


class LabelFiles(Reader):
    """Files of labels and indices."""

    def make(self, rng: random.Random) -> bytes:
        start, swap, separator = rng.randint(0, 1), rng.random() < 0.5, rng.choice(("\t", " ", ",", ", "))
        rows = []
        for index in range(start, start + rng.randint(1, 5)):
            fields = [rng.choice((f"{rng.uniform(0, 5):.3g}", str(rng.randint(0, 5)))), str(index)]
            rows.append(separator.join(fields[::-1] if swap else fields))
        return damage(rng, "\n".join(rows).encode() + b"\n", b" \t,\n")

    def read(self, path: Path) -> Any:
        return (read_label_file(path) + 0.0).tobytes()  # -0 is 0

    def expected(self, content: bytes) -> Any:
        lines = [line.decode().replace(",", " ").split() for line in split_lines(content)]
        if any(len(fields) != 2 or not "".join(fields).isascii() for fields in lines):
            raise ValueError("columns")
        columns = np.array([[number(field) for field in fields] for fields in lines]).T
        found = {
            (labels + 0.0).astype(np.float32).tobytes()
            for index, labels in (columns, columns[::-1])
            if index[0] in (0, 1) and (index == index[0] + np.arange(len(index))).all() and ((labels >= 0) & (labels <= 5)).all()
        }
        (labels,) = found  # one way to read it, or two that agree
        return labels


class Tables(Reader):
    """Tables of pairs: an undamaged one gives the pairs it was made of, a damaged one what its bytes say in some way to read them.

    The ways: each dialect of the format, a header or none, any columns as sentences, label and negatives.
    """

    suffix = ".table"
    always_has_header = False

    def make(self, rng: random.Random) -> bytes:
        n_rows, n_negatives = rng.randint(1, 4), rng.choice((0, 0, 0, 2))
        low, high, label = rng.choice(((0, 5, "score"), (0, 1, "label"), (-1, 1, "similarity"), (1, 5, "relatedness_score")))
        names = rng.choice(("sentence1 sentence2", "Question1 question2", "#1_String #2_String", "anchor positive")).split()
        names += [f"negative_{i}" for i in range(n_negatives)]
        table: dict[str, list[Any]] = {name: [rng.choice(WORDS) for _ in range(n_rows)] for name in names}
        if not n_negatives and rng.random() < 0.8:
            table[label] = [round(rng.uniform(low, high), 2) for _ in range(n_rows)]
        self.has_header = self.always_has_header or label not in table or rng.random() < 0.6
        if self.has_header and rng.random() < 0.3:
            table["id"] = [f"no{i}" for i in range(n_rows)]
        table = {name: table[name] for name in rng.sample(list(table), len(table))}
        if not self.has_header:  # the first column of text is the first sentence
            label, names = "", [name for name in table if name in names]
            table = {"" if isinstance(column[0], float) else name: column for name, column in table.items()}
        good = self.write(rng, table)
        self.truth = (
            *(table[name] for name in names[:2]),
            self.scaled(table[label], label) if label in table else None,
            [list(row) for row in zip(*(column for name, column in table.items() if name in names[2:]), strict=True)],
        )
        content = self.damage(rng, good)
        self.may_refuse = content != good
        return content

    def write(self, rng: random.Random, table: dict[str, list[Any]]) -> bytes:
        """An undamaged file; it may change cells of the table to what the format can hold."""
        raise NotImplementedError

    def damage(self, rng: random.Random, good: bytes) -> bytes:
        """The file with damage or, now and then, without."""
        raise NotImplementedError

    def ways(self, content: bytes) -> Iterator[Way]:
        """The ways to read a file; one that refuses it raises anything."""
        raise NotImplementedError

    def read(self, path: Path) -> Any:
        pairs = read_text_pairs(path)
        return pairs.first, pairs.second, pairs.labels.tobytes() if pairs.has_labels else None, pairs.negatives

    def expected(self, content: bytes) -> Any:
        return content if self.may_refuse else self.truth

    def agrees(self, found: Any, expected: Any) -> bool:
        return any(self._says(way, *found) for way in self.ways(expected)) if self.may_refuse else found == expected

    def _says(self, way: Way, first: Any, second: Any, labels: Any, negatives: Any) -> bool:
        """Whether columns of the table are these sentences and labels."""
        names, rows = way
        width = len(names) or min((len(row) for row in rows), default=0)
        if any(len(row) != width for row in rows) and (names or width < 7):  # rows of the STS benchmark may have more cells
            return False
        columns = [[row[i] for row in rows] for i in range(width)]
        sentences = [first, second, *map(list, zip(*negatives, strict=True))]
        if any(column not in columns or not all(cell.strip().encode() for cell in column) for column in sentences):
            return False
        scales = ("", "relatedness_score") if any("relatedness" in name.lower() for name in names) else ("",)
        return labels is None or any(self.scaled(column, name) == labels for column in columns for name in scales)

    @staticmethod
    def scaled(cells: list[Any], name: str) -> bytes | None:
        """Labels on 0-5, None if one of the cells is no label."""
        try:
            values = [number(cell.strip().replace(",", ".") if isinstance(cell, str) else repr(float(cell))) for cell in cells]
        except (TypeError, ValueError, OverflowError):
            return None
        if not all(-1 <= value <= 5 for value in values):
            return None
        low, high = (-1, 1) if min(values) < 0 else (0, 1) if max(values) <= 1 else (0, 5)
        if high == 5 and min(values) >= 1 and name == "relatedness_score":
            low = 1
        scaled = np.array([(value - low) / (high - low) * 5 if (low, high) != (0, 5) else value for value in values], np.float32)
        return scaled.tobytes() if max(values) <= high else None


class DelimitedTables(Tables):
    """Commas, tabs or semicolons; a header or none; quotes or none; UTF-8, UTF-16, gzip."""

    def write(self, rng: random.Random, table: dict[str, list[Any]]) -> bytes:
        delimiter = rng.choice(",\t;")
        is_plain = delimiter == "\t" and rng.random() < 0.7
        for column in table.values():
            if is_plain and isinstance(column[0], str):
                column[:] = [" ".join(cell.splitlines()) for cell in column]
            elif delimiter == ";" and not self.has_header and isinstance(column[0], str):
                column[:] = [cell.strip() for cell in column]  # "3,5;one, two; space " is a row of commas too
        rows: list[list[Any]] = [list(row) for row in zip(*table.values(), strict=True)]
        if delimiter == ";" and rng.random() < 0.5:
            rows = [[str(cell).replace(".", ",") if isinstance(cell, float) else cell for cell in row] for row in rows]
        if self.has_header:
            rows.insert(0, list(table))
        text = io.StringIO()
        if is_plain:
            text.write("".join("\t".join(map(str, row)) + "\n" for row in rows))
        else:  # between tabs, quotes are text unless all cells have them
            all_quoted = delimiter == "\t" or rng.random() < 0.5
            ends = rng.choice(("\n", "\r\n"))
            csv.writer(
                text, delimiter=delimiter, lineterminator=ends, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
            ).writerows(rows)
        excel = rng.choice(("", "", "", f"sep={delimiter}\n"))
        return (excel + text.getvalue()).encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))

    def damage(self, rng: random.Random, good: bytes) -> bytes:
        content = damage(rng, good, b",;\t\n")
        if rng.random() < 0.1:
            content = gzip.compress(content)
            content = change_bytes(rng, content, 2) if rng.random() < 0.3 else content
        return content

    def ways(self, content: bytes) -> Iterator[Way]:
        text = decode(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        start, _, rest = text.partition("\n")
        text = rest if start[:4].lower() == "sep=" and len(start.removesuffix("\r")) == 5 else text
        for delimiter, is_quoted in (("\t", False), ("\t", True), (",", True), (";", True)):
            with suppress(ValueError):
                rows = (
                    split_quoted(text, delimiter)
                    if is_quoted
                    else [line.rstrip("\r").split(delimiter) for line in text.split("\n")]
                )
                rows = without_blank_ends(rows, lambda row: "".join(row))
                yield [], rows
                yield rows[0], rows[1:]


class JsonTables(Tables):
    """JSON lines, objects or arrays, and one array of objects."""

    def write(self, rng: random.Random, table: dict[str, list[Any]]) -> bytes:
        rows: list[Any] = [list(row) for row in zip(*table.values(), strict=True)]
        if self.has_header:
            rows = [dict(zip(table, row, strict=True)) for row in rows]
            rows[1:] = [dict(rng.sample(list(row.items()), len(row))) for row in rows[1:]]
        ascii_only = rng.random() < 0.5
        if self.has_header and rng.random() < 0.3:
            text = json.dumps(rows, ensure_ascii=ascii_only, indent=rng.choice((None, 2)))
        else:
            text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        return text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))

    def damage(self, rng: random.Random, good: bytes) -> bytes:
        return damage(rng, good, b'",:{}[] \n')

    def ways(self, content: bytes) -> Iterator[Way]:
        yield from DelimitedTables().ways(content)  # a damaged first row may look like text
        with suppress(ValueError):
            array = json.loads(decode(content))
            if isinstance(array, list) and array and all(isinstance(record, dict) for record in array):
                yield by_name(array)
        lines = without_blank_ends(decode(content).split("\n"), str)
        records = [json.loads(line) for line in lines]
        if isinstance(records[0], dict):
            yield by_name(records)
        else:
            yield [], records
            yield records[0], records[1:]


class ParquetTables(Tables):
    """Parquet, read as pyarrow's own rows."""

    always_has_header = True

    def write(self, rng: random.Random, table: dict[str, list[Any]]) -> bytes:
        buffer = io.BytesIO()
        compression, dictionary = rng.choice(("none", "snappy", "zstd", "gzip")), rng.random() < 0.5
        parquet.write_table(
            pyarrow.table(table), buffer, compression=compression, use_dictionary=dictionary, row_group_size=rng.randint(1, 4)
        )
        return buffer.getvalue()

    def damage(self, rng: random.Random, good: bytes) -> bytes:
        at = rng.randrange(len(good))
        cut = good[:at] + good[at + rng.randint(1, 9) :]
        return rng.choice((good, *[change_bytes(rng, good, 3)] * 6, good[:at], cut))

    def ways(self, content: bytes) -> Iterator[Way]:
        table = parquet.ParquetFile(io.BytesIO(content)).read()
        yield table.column_names, [list(row.values()) for row in table.to_pylist()]


def by_name(records: list[dict[str, Any]]) -> Way:
    """Objects as rows; the names are the keys of all of them in order of appearance."""
    names: list[str] = []
    for record in records:
        names += [name for name in record if name not in names]
    return names, [[record.get(name) for name in names] for record in records]


def decode(content: bytes) -> str:
    """Text in UTF-8 without NUL, or in UTF-16 if its first bytes say so."""
    is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not is_wide and b"\0" in content:
        raise ValueError("NUL")
    return content.decode("utf-16") if is_wide else content.removeprefix(b"\xef\xbb\xbf").decode()


def split_quoted(text: str, delimiter: str) -> list[list[str]]:
    """Cells of text whose quotes quote, character by character."""
    rows: list[list[str]] = []
    row: list[str] = []
    cell, state = "", "start"
    for character in text:
        if state == "quoted" and character != '"':
            cell += character
        elif character == '"' and state in ("start", "quoted", "closed"):
            cell += '"' * (state == "closed")
            state = "closed" if state == "quoted" else "quoted"
        elif character == "\n":
            rows.append([*row, cell])
            row, cell, state = [], "", "start"
        elif character == "\r":
            state = "ended"
        elif state == "ended" or (state == "closed" and character != delimiter):
            raise ValueError(f"{character!r} where a cell or row has ended")
        elif character == delimiter:
            row.append(cell)
            cell, state = "", "start"
        else:
            cell += character
            state = "plain"
    if state == "quoted":
        raise ValueError("an open quote")
    return [*rows, [*row, cell]]


def without_blank_ends(rows: list[Any], text: Callable[[Any], str]) -> list[Any]:
    """Rows without the blank ones at the end; a blank one elsewhere raises."""
    while rows and not text(rows[-1]).strip():
        rows.pop()
    if not rows or any(not text(row).strip() for row in rows):
        raise ValueError("blank")
    return rows


class Recipes(Reader):
    """Recipes in YAML, made from the presets."""

    may_refuse = True

    def __init__(self) -> None:
        self.parser = make_parser("recipe", "")
        add_recipe_arguments(self.parser)
        self.presets = [path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml")) if b"\nphases:" in path.read_bytes()]

    def make(self, rng: random.Random) -> bytes:
        return damage(rng, rng.choice(self.presets), b" \n:{},")

    def read(self, path: Path) -> Any:
        recipe, _ = parse_recipe(self.parser, ["--config", str(path)])
        return asdict(recipe)

    def expected(self, content: bytes) -> Any:
        """The fields' values if the recipe is accepted; which values are valid is not repeated here."""
        contents = yaml.safe_load(content.decode("utf-8-sig"))
        if not isinstance(contents, dict):
            raise ValueError("no mapping")
        return contents

    def agrees(self, found: Any, expected: Any) -> bool:
        """Whether every field of the file has its value in the recipe."""
        if isinstance(found, dict) and isinstance(expected, dict):
            return all(str(key) in found and self.agrees(found[str(key)], value) for key, value in expected.items())
        if isinstance(found, (int, float)) and not isinstance(expected, (dict, bool)):
            try:
                return float(found) == float(str(expected).strip("\ufeff"))
            except ValueError:  # no number, but the field was read as one
                return False
        return found == expected or str(found) == str(expected)


class Sentences(Reader):
    """Text files without labels, one sentence a line."""

    suffix = ".txt"

    def make(self, rng: random.Random) -> bytes:
        return damage(rng, "\n".join(rng.choice(WORDS) for _ in range(rng.randint(0, 6))).encode(), b" \n")

    def read(self, path: Path) -> Any:
        return list(SentenceFiles([path]))

    def expected(self, content: bytes) -> Any:
        if content[:2] == b"\x1f\x8b" or content[:4] in (b"PK\x03\x04", b"(\xb5/\xfd"):
            raise ValueError("compressed")
        if b"\0" in content:
            raise ValueError("NUL")
        lines = [line.decode("utf-8").strip() for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        if not any(lines):
            raise ValueError("empty")
        return [line for line in lines if line]


class CorpusSentences(Sentences):
    """Text files of a corpus, bad lines left out."""

    def read(self, path: Path) -> Any:
        records = Records(str(path), skip_bad_rows=True)
        if records.survey().rows != len(list(records)):
            raise AssertionError("counted wrongly")
        return [record.text for record in records]

    def expected(self, content: bytes) -> Any:
        if content[:2] in (b"\x1f\x8b", b"(\xb5", *UTF16):
            raise ValueError("compressed or UTF-16")
        found = []
        for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            with suppress(UnicodeDecodeError):
                if b"\0" in line:
                    continue
                found.append(line.decode("utf-8").strip())
        if not any(found):
            raise ValueError("empty")
        return [line for line in found if line]
