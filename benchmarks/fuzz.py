"""Fuzzing: every damaged or hostile file must end in a correct read or in the project's one-line error.

Example:

    python benchmarks/fuzz.py --inputs 100000

Good files are damaged at random: bytes and fields replaced, doubled or deleted, line ends and encodings changed. The result is
compared with a slow, obvious reading of the same bytes that shares no code with the project: `float` on every field, quotes
character by character, pyarrow's own rows, zipfile. An input fails if the project raises anything but an InputError of one line,
refuses what the other reading accepts, or reads other values.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import resource
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow
import torch
import yaml
from pyarrow import parquet
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tqdm import tqdm

from common.cli import make_parser, run_command
from common.errors import InputError
from corpus.index import CorpusFolder, Plan
from corpus.nearest import Corpus
from corpus.records import Records
from evaluation.checkpoint import load_encoder, save_encoder
from model import EncoderConfig, SentenceEncoder, mean_pooling
from portable.small_encoder import FILES, SmallEncoder
from shrinking.folder import write_folder
from shrinking.layers import StaticModel
from text import load_small_encoder
from tokens.dat_files import read_label_file, read_token_file
from tokens.sentence_files import SentenceFiles
from tokens.tables import UTF16
from tokens.text_pairs import read_text_pairs
from tokens.token_store import create_store, open_store, pack_json
from training.recipe import CONFIGS, add_recipe_arguments, parse_recipe

DIM = 3
REFUSED = "refused"
NUMBERS = (
    b"0 -0 +1 1. .5 -.5e-3 01.50 1e5 1E+05 100e-2 3.4028235e38 3.5e38 1e39 -1e400 1e-46 nan inf -Infinity 0x1p3 1_0 1,5 1.2.3 --1 "
    b'1e 18446744073709551616 0.1234567890123456789 1e-400 4.9e-324 null true [1] {} "1" \xd9\xa1 \xef\xbc\x91 1\x00 \x1c 1\x0b '
).split(b" ")  # the last one is empty; two are digits of other scripts
JUNK = b'|\x00|\xff|\xef\xbb\xbf|\r|\n|\r\n|\n\n| |  |\t|\x0c|"|""|,|1000000000000'.split(b"|")
WORDS = [
    "a cat",
    "caf\u00e9",
    'he said "go"',
    "one, two",
    "'",
    "x; y",
    "\u4e2d\u6587",
    " space ",
    "line\nbreak",
    "x\r\ny",
    "a\n\nb",
]


def damage(rng: random.Random, text: bytes, separators: bytes) -> bytes:
    """A text file with some of its fields, bytes and lines changed."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        start = rng.choice([0, *(i + 1 for i, byte in enumerate(text) if byte in separators)])
        end = next((i for i in range(start, len(text)) if text[i] in separators), len(text))
        at, to = sorted(rng.randrange(len(text) + 1) for _ in "ab")
        lines = text.splitlines(keepends=True)
        changed = (
            text[:start] + rng.choice(NUMBERS) + text[end:],
            text[:at] + rng.choice(JUNK) + text[at:],
            text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :],
            text[:at],
            text[:at] + text[to:] if to - at < 8 else text[:to] + text[at:],
            text.replace(b"\n", rng.choice((b"\r\n", b"\n\n", b" \n", b""))),
            b"".join(rng.sample(lines, len(lines))),
            rng.choice((b"\xef\xbb\xbf" + text, text + b"\n", text + b" \r\n\n", text * 2)),
        )
        text = rng.choice(changed)
    return text


def change_bytes(rng: random.Random, content: bytes, most: int) -> bytes:
    """1 to `most` bytes replaced by random ones."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, most)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def split_lines(text: bytes) -> list[bytes]:
    """The lines of a file as the formats define them: blank ones only at the end."""
    lines = [line.rstrip(b"\r\n") for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or any(not line.strip() for line in lines):
        raise ValueError("blank")
    return lines


def number(field: str) -> float:
    """A decimal number."""
    if "_" in field:
        raise ValueError("underscore")
    return float(field)


class Reader(Protocol):
    """A reader under test."""

    suffix: str = ".dat"
    may_refuse: bool = False  # whether it may refuse what `expected` accepts

    def make(self, rng: random.Random) -> bytes:
        """A damaged file."""

    def read(self, path: Path) -> Any:
        """What the project reads; raises InputError if it refuses."""

    def expected(self, content: bytes) -> Any:
        """What the other reading finds; raises anything if it refuses."""

    def agrees(self, found: Any, expected: Any) -> bool:
        """Whether both found the same."""
        return found == expected


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


Way = tuple[list[str], list[list[Any]]]  # names of the columns, empty without a header, and rows


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
        return text.getvalue().encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))

    def damage(self, rng: random.Random, good: bytes) -> bytes:
        content = damage(rng, good, b",;\t\n")
        if rng.random() < 0.1:
            content = gzip.compress(content)
            content = change_bytes(rng, content, 2) if rng.random() < 0.3 else content
        return content

    def ways(self, content: bytes) -> Iterator[Way]:
        text = decode(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
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
    """JSON lines: objects or arrays."""

    def write(self, rng: random.Random, table: dict[str, list[Any]]) -> bytes:
        rows: list[Any] = [list(row) for row in zip(*table.values(), strict=True)]
        if self.has_header:
            rows = [dict(zip(table, row, strict=True)) for row in rows]
            rows[1:] = [dict(rng.sample(list(row.items()), len(row))) for row in rows[1:]]
        ascii_only = rng.random() < 0.5
        text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        return text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))

    def damage(self, rng: random.Random, good: bytes) -> bytes:
        return damage(rng, good, b'",:{}[] \n')

    def ways(self, content: bytes) -> Iterator[Way]:
        yield from DelimitedTables().ways(content)  # a damaged first row may look like text
        lines = without_blank_ends(decode(content).split("\n"), str)
        records = [json.loads(line) for line in lines]
        if isinstance(records[0], dict):
            yield list(records[0]), [[record.get(name) for name in records[0]] for record in records]
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


def decode(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 if its first bytes say so."""
    is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
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


class Checkpoints(Reader):
    """model.bin with bytes changed, or with contents changed in an intact archive."""

    may_refuse = True

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        path = folder / "good.bin"
        save_encoder(path, SentenceEncoder(EncoderConfig(input_dim=4, output_dim=2, heads=2, hidden_dim=2)))
        self.good = path.read_bytes()
        self.entries = self._entries(self.good)
        self.canary = folder / "executed"
        self.values = self.read(path)

    @staticmethod
    def _entries(content: bytes) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def make(self, rng: random.Random) -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return change_bytes(rng, self.good, 4)
        if kind == 1:
            at = rng.randrange(len(self.good))
            return rng.choice((self.good[:at], self.good[at:], self.good[:at] + rng.randbytes(rng.randint(1, 50)) + self.good[at:]))
        entries = dict(self.entries)
        if kind == 2:  # an entry with a valid checksum
            name = rng.choice(sorted(entries))
            entries[name] = change_bytes(rng, entries[name], 3)
        else:  # a pickle that would execute code, or that claims sizes that are not there
            (name,) = (name for name in entries if name.endswith("data.pkl"))
            canary = str(self.canary).encode()
            entries[name] = rng.choice(
                (
                    b"\x80\x02cbuiltins\nopen\nX\x06\x00\x00\x00%sX\x01\x00\x00\x00w\x86R." % canary,
                    b"cposix\nsystem\n(S'touch %s'\ntR." % canary,
                    b"\x80\x02}(X\x01\x00\x00\x00acpathlib\nPath.touch\n(cpathlib\nPath\n(S'%s'\ntRtRu." % canary,
                    entries[name].replace(b"K\x02", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),  # a size of 10^12
                    entries[name].replace(b"K\x08", b"J\xff\xff\xff\x7f"),
                )
            )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, entry in entries.items():
                archive.writestr(name, entry if rng.random() > 0.001 else bytes(50_000_000))
        return buffer.getvalue()

    def read(self, path: Path) -> Any:
        encoder = load_encoder(path)
        encoder(torch.ones(1, 2, encoder.config.input_dim))
        if self.canary.exists():
            raise RuntimeError("a pickle was executed")
        return [parameter.detach().numpy().tobytes() for parameter in encoder.parameters()]

    def expected(self, content: bytes) -> Any:
        """The good values, or None if an entry was changed and any value may be right; a wrong checksum raises."""
        return self.values if self._entries(content) == self.entries else None

    def agrees(self, found: Any, expected: Any) -> bool:
        return expected is None or found == expected


class Stores(Reader):
    """Token stores with bytes changed: everything outside the tokens is read unchanged."""

    may_refuse = True

    def __init__(self, folder: Path) -> None:
        path = folder / "good.store"
        with create_store(path, DIM) as writer:
            for length in (2, 1, 3):
                writer.append(np.arange(1, length * DIM + 1, dtype=np.float32).reshape(length, DIM))
            extra = {"labels": np.array([1, 4], np.float32), "sentences": pack_json(["a", "b", "c"])}
            writer.finish(extra, {"source": "x"})
        self.good = path.read_bytes()
        self.values = self.read(path)

    def make(self, rng: random.Random) -> bytes:
        kind = rng.randrange(3)
        if kind == 0:
            return change_bytes(rng, self.good, 3)
        if kind == 1:
            at = rng.randrange(len(self.good))
            return self.good[:at] + rng.choice((b"", rng.randbytes(rng.randint(1, 40)), self.good[at:] * 2))
        at = rng.choice([i for i, byte in enumerate(self.good) if chr(byte).isdigit()])  # a number in a header
        return self.good[:at] + rng.choice((b"9", b"999999999999", b"-1", b"0")) + self.good[at + 1 :]

    def read(self, path: Path) -> Any:
        store = open_store(path)
        for i in range(len(store)):
            store.sentence(i).sum()
        arrays = {"starts": store.starts, "lengths": store.lengths, "digests": store.digests, **store.extra}
        return {name: array.tolist() for name, array in arrays.items()}

    def expected(self, content: bytes) -> Any:
        return self.values  # damage to the tokens goes unnoticed: checksums of them would take too long


class FolderReader(Reader):
    """One file of a folder with bytes changed, cut off, or, in the configuration, with other values.

    Attributes:
        folder: a good folder.
        good: the contents of its files.
        configuration: the name of its JSON file, and the key of the object whose values are changed, if it is not the whole.
    """

    may_refuse = True
    folder: Path
    good: dict[str, bytes]
    configuration: tuple[str, str | None]

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(sorted(self.good))
        content, kind = self.good[name], rng.randrange(4)
        if kind == 0:
            content = content[: rng.randrange(len(content) + 1)]
        elif kind == 1 and name == self.configuration[0]:
            config = json.loads(content)
            own = config if self.configuration[1] is None else config[self.configuration[1]]
            own[rng.choice(sorted(own))] = rng.choice((None, -1, 0, 2.5, "4", [], {}, True, 10**12, "int8"))
            content = json.dumps(config).encode()
        elif kind > 1:
            content = change_bytes(rng, content, 3)
        return name.encode() + b"\n" + content

    def read(self, path: Path) -> Any:
        name, content = path.read_bytes().split(b"\n", 1)
        file = self.folder / name.decode()
        file.write_bytes(content)
        try:
            return self.read_folder()
        finally:
            file.write_bytes(self.good[name.decode()])

    def read_folder(self) -> Any:
        """What the folder holds."""
        raise NotImplementedError


class SmallEncoders(FolderReader):
    """The folder of a small encoder."""

    configuration = ("config.json", "small_encoder")

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder / "small"
        vocabulary = {"[UNK]": 0, "a": 1, "cat": 2}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
        model = StaticModel(torch.randn(len(vocabulary), 4), SimpleNamespace(to_diff_dict=dict, hidden_size=4))
        words = SimpleNamespace(backend_tokenizer=tokenizer, special_tokens_map={})
        backbone: Any = SimpleNamespace(model=model, tokenizer=words, max_length=8, name="tiny")
        write_folder(self.folder, backbone, mean_pooling(4), None, {})
        self.good = {name: (self.folder / name).read_bytes() for name in (*FILES, "config.json")}
        self.values = SmallEncoder(self.folder).encode("a cat").tobytes()

    def read_folder(self) -> Any:
        return load_small_encoder(self.folder).encode("a cat").tobytes()

    def expected(self, content: bytes) -> Any:
        """The good values for an intact graph and tokenizer; of another configuration, those or an error."""
        name, content = content.split(b"\n", 1)
        if name != b"config.json" and content != self.good[name.decode()]:
            raise ValueError(name)
        return self.values


class Sentences(Reader):
    """Text files without labels, one sentence a line."""

    suffix = ".txt"

    def make(self, rng: random.Random) -> bytes:
        return damage(rng, "\n".join(rng.choice(WORDS) for _ in range(rng.randint(0, 6))).encode(), b" \n")

    def read(self, path: Path) -> Any:
        return list(SentenceFiles([path]))

    def expected(self, content: bytes) -> Any:
        if content[:2] in (b"\x1f\x8b", b"PK", b"(\xb5"):
            raise ValueError("compressed")
        lines = [line.decode("utf-8").strip() for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        if not any(lines):
            raise ValueError("empty")
        return [line for line in lines if line]


class CorpusSentences(Reader):
    """Text files of a corpus, bad lines left out."""

    suffix = ".txt"

    def make(self, rng: random.Random) -> bytes:
        return damage(rng, "\n".join(rng.choice(WORDS) for _ in range(rng.randint(0, 6))).encode(), b" \n")

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
                found.append(line.decode("utf-8").strip())
        if not any(found):
            raise ValueError("empty")
        return [line for line in found if line]


class Corpora(FolderReader):
    """The folder of an encoded corpus."""

    configuration = ("corpus.json", None)

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "corpus"
        plan = Plan("", None, "", "", None, False, "", 3, False, 2, "npy", "float32", True, 4)
        corpus = CorpusFolder.begin(self.folder, plan)
        for number, rows in enumerate(([0, 1], [2])):
            corpus.write(number, rows, [f"sentence {row}" for row in rows], np.eye(4, dtype=np.float32)[rows])
        self.good = {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def read_folder(self) -> Any:
        corpus = Corpus(self.folder)
        _, numbers = corpus.nearest(np.ones((1, 4), np.float32), 3)
        return sorted(numbers[0].tolist()), len(corpus.rows([0, 1, 2]))

    def expected(self, content: bytes) -> Any:
        return [0, 1, 2], 3  # changed numbers and letters go unnoticed


READERS: dict[str, Callable[[Path], Reader]] = {
    "tokens": lambda folder: TokenFiles(),
    "labels": lambda folder: LabelFiles(),
    "delimited": lambda folder: DelimitedTables(),
    "json": lambda folder: JsonTables(),
    "parquet": lambda folder: ParquetTables(),
    "recipes": lambda folder: Recipes(),
    "checkpoints": Checkpoints,
    "stores": Stores,
    "small encoders": SmallEncoders,
    "sentences": lambda folder: Sentences(),
    "corpus sentences": lambda folder: CorpusSentences(),
    "corpora": Corpora,
}


def fuzz(name: str, reader: Reader, folder: Path, inputs: int, seed: int) -> tuple[Counter[str], list[tuple[str, bytes]]]:
    """Feed damaged files to a reader; returns how many it read and refused, and the failures with reason and input."""
    rng = random.Random(f"{name} {seed}")
    counts: Counter[str] = Counter()
    failures: list[tuple[str, bytes]] = []
    path = folder / f"input{reader.suffix}"
    for _ in tqdm(range(inputs), desc=name, unit="input", disable=None):
        content = reader.make(rng)
        path.write_bytes(content)
        try:
            expected = reader.expected(content)
        except Exception:  # it refuses in any way
            expected = REFUSED
        try:
            with redirect_stderr(io.StringIO()):
                found = reader.read(path)
        except InputError as error:
            found = REFUSED
            if "\n" in str(error) or len(str(error)) > 1000:
                failures.append((f"message: {error}", content))
        except Exception:
            failures.append((traceback.format_exc(limit=-3), content))
            continue
        if found == REFUSED:
            counts["refused"] += 1
            if expected != REFUSED and not reader.may_refuse:
                failures.append(("refused what is right", content))
        else:
            counts["read"] += 1
            try:
                is_right = expected != REFUSED and reader.agrees(found, expected)
            except Exception:  # the other reading refuses
                is_right = False
            if not is_right:
                failures.append((f"read as {str(found)[:300]}", content))
    return counts, failures


def main() -> None:
    """Command line."""
    parser = make_parser("benchmarks/fuzz.py", __doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="damaged files per reader")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--only", choices=tuple(READERS), help="one of the readers")
    options = parser.parse_args()
    if options.inputs < 1:
        raise InputError(f"--inputs is {options.inputs}, expected 1 or more")
    warnings.simplefilter("ignore")
    failed = 0
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for name in READERS if options.only is None else (options.only,):
        with tempfile.TemporaryDirectory(dir=in_memory) as folder:
            counts, failures = fuzz(name, READERS[name](Path(folder)), Path(folder), options.inputs, options.seed)
        for reason, content in failures[:5]:
            print(f"{content[:300]!r}\n{reason}", file=sys.stderr)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        outcome = f"{counts['read']:,} read, {counts['refused']:,} refused, {len(failures):,} failures"
        print(f"{name}: {outcome}, {memory:,.0f} MiB", flush=True)
        failed += len(failures)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    run_command(main)
