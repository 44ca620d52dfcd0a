"""The challenge's four text files, all named `*.dat`, and the token stores made from them.

    file                row i
    1 sentences         sentence1 <TAB> sentence2 <TAB> label
    2 first tokens      n_tokens dim v v v ...   (n_tokens * dim numbers, token after token)
    3 second tokens     as file 2
    4 labels            the similarity 0-5 and the row's index, in either order

Files are told apart by their content, because only the name of the first is public.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simdjson
from tqdm import tqdm

from atomic import write_atomically
from errors import InputError
from text_files import TextPairs, decode, parse_label, read_lines
from token_store import TokenStore, cached_store, create_store, identity_of

TOKEN_DIM = 768
PLAIN_NUMBERS = b"0123456789+-.eE "


@dataclass(frozen=True)
class DatFiles:
    """Which file is which. `sentences` or `labels` may be missing, not both."""

    sentences: Path | None
    first: Path
    second: Path
    labels: Path | None


def find_dat_files(paths: Sequence[str | os.PathLike[str]]) -> DatFiles:
    """Recognise the challenge's files by their content.

    The two token files have the same form: in a folder, the first by name holds the first sentences; where paths are
    given, the first given.

    Args:
        paths: one folder with `*.dat` or `*.dat.gz` files, or the paths of the files.

    Raises:
        InputError: where a file is missing, not recognisable, or more than one could be the one looked for.
    """
    files = [Path(path) for path in paths]
    place = files[0]
    if place.is_dir():
        files = sorted(path for path in place.iterdir() if path.name.endswith((".dat", ".dat.gz")))
        if not files:
            raise InputError("no .dat or .dat.gz file in this folder", path=place)
    kinds: dict[str, list[Path]] = {"sentences": [], "tokens": [], "labels": []}
    for path in files:
        kinds[recognise(path)].append(path)
    for kind, most in (("sentences", 1), ("tokens", 2), ("labels", 1)):
        if len(kinds[kind]) > most:
            names = ", ".join(path.name for path in kinds[kind])
            raise InputError(
                f"ambiguous: {len(kinds[kind])} files of {kind} ({names}), expected {most}; give the paths of the right ones",
                path=place,
            )
    if len(kinds["tokens"]) < 2:
        found = ", ".join(path.name for path in kinds["tokens"]) or "none"
        raise InputError(f"expected 2 files of token embeddings, one for each sentence of a pair, found {found}", path=place)
    if not kinds["sentences"] and not kinds["labels"]:
        raise InputError("no labels: expected a file of sentences with labels or a file of labels", path=place)
    return DatFiles(
        sentences=next(iter(kinds["sentences"]), None),
        first=kinds["tokens"][0],
        second=kinds["tokens"][1],
        labels=next(iter(kinds["labels"]), None),
    )


def recognise(path: str | os.PathLike[str]) -> str:
    """What a file's first row looks like: "sentences", "tokens" or "labels"."""
    number, row = next(read_lines(path))
    fields = re.split(rb"[\s,]+", row.strip())
    numeric = [_is_number(field) for field in fields[:8]]
    if all(numeric):
        return "tokens" if len(fields) > 4 else "labels"
    if sum(numeric) >= 3 and numeric[:2] == [True, True] and b"\t" not in row:
        return "tokens"  # a damaged row of tokens; reading it says what is wrong
    if row.count(b"\t") in (1, 2, 3):
        return "sentences"
    raise InputError(
        "not one of the challenge's files, expected rows of two sentences and a label separated by tabs, "
        "of 'n_tokens dim v v ...', or of a label and an index",
        path=path,
        line=number,
    )


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def read_token_file(
    path: str | os.PathLike[str],
    *,
    dim: int | None = TOKEN_DIM,
    cache_dir: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
) -> TokenStore:
    """The token store of a file of token embeddings.

    It is made once, row by row, so that a file larger than memory can be read, and kept beside the file as
    `NAME.store`. While the file stays the same, opening it again takes milliseconds.

    Args:
        path: file of rows `n_tokens dim v v v ...`, may be gzip-compressed.
        dim: the width that every row must have; None takes that of the first row.
        cache_dir: where to keep the store instead of beside the file.
        show_progress: show a progress bar while reading.

    Raises:
        InputError: for a row with too few or too many numbers, another dim, NaN, a negative count.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", path=path)
    description = {"source": path.name, "identity": identity_of(path), "dim": dim}

    def build(cache: Path) -> None:
        rows = read_lines(path)
        number, row = next(rows)
        tokens = parse_token_row(row, dim, path, number)
        bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=None if show_progress else True)
        is_plain = path.suffix != ".gz"
        with bar, create_store(cache, tokens.shape[1]) as writer:
            writer.append(tokens)
            bar.update(len(row) + 1 if is_plain else 0)
            for number, row in rows:
                writer.append(parse_token_row(row, tokens.shape[1], path, number))
                bar.update(len(row) + 1 if is_plain else 0)
            writer.finish({}, description)

    return cached_store(Path(cache_dir or path.parent) / f"{path.name}.store", description, build)


def parse_token_row(row: bytes, dim: int | None, path: str | os.PathLike[str], number: int) -> np.ndarray:
    """The token embeddings `(n_tokens, dim)`, float32, of one row `n_tokens dim v v v ...`.

    Args:
        row: the row without its line end.
        dim: the dim it must state; None accepts any.
        path: the file and
        number: the line, for the message of an error.
    """
    counts = row[:64].split(None, 2)[:2]
    try:
        n_tokens, width = int(counts[0]), int(counts[1])
    except (ValueError, IndexError):
        shown = row[:40].decode("utf-8", "replace")
        raise InputError(f"row begins with {shown!r}, expected 'n_tokens dim v v ...'", path=path, line=number) from None
    if n_tokens < 0 or width < 1:
        raise InputError(f"n_tokens is {n_tokens} and dim is {width}, expected no negative counts", path=path, line=number)
    if dim is not None and width != dim:
        raise InputError(f"dim is {width}, expected {dim}", path=path, line=number)
    text = row.split(None, 2)[2] if n_tokens or len(row.split(None, 2)) > 2 else b""
    values = _parse_numbers(text)
    if values.size != n_tokens * width or not np.isfinite(values).all():
        raise InputError(_what_is_wrong(text, n_tokens, width), path=path, line=number)
    return values.reshape(n_tokens, width)


def _parse_numbers(text: bytes, parser: simdjson.Parser = simdjson.Parser()) -> np.ndarray:  # noqa: B008
    """Decimal numbers separated by white space, `(n,)`, float32; empty where something else is among them."""
    # A row of plain numbers is a JSON array once its spaces are commas, and the JSON parser reads twice as fast as
    # NumPy; one parser for all rows, because a new one begins without memory. Not for what JSON has no word for, such
    # as +1 or two spaces, nor for -0, which it reads as the integer 0.
    is_plain = not text.translate(None, PLAIN_NUMBERS) and b"-0 " not in text and not text.endswith(b"-0")
    if is_plain:
        try:
            array: Any = parser.parse(b"[" + text.replace(b" ", b",") + b"]")
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused as such
                return np.frombuffer(array.as_buffer(of_type="d"), dtype=np.float64).astype(np.float32)
        except (ValueError, TypeError, RuntimeError):  # RuntimeError: an integer of more than 64 bits
            pass
    try:
        return np.fromstring(text, dtype=np.float32, sep=" ") if text else np.empty(0, np.float32)  # type: ignore[call-overload]
    except ValueError:
        return np.empty(0, np.float32)


def _what_is_wrong(text: bytes, n_tokens: int, dim: int) -> str:
    fields = text.split()
    for position, field in enumerate(fields, start=1):
        if not _is_number(field) or not _fits_float32(float(field)):
            shown = field[:40].decode("utf-8", "replace")
            return f"value {position} is {shown!r}, expected a finite number in the range of float32"
    return f"{len(fields)} numbers after n_tokens and dim, expected n_tokens * dim = {n_tokens} * {dim} = {n_tokens * dim}"


def _fits_float32(value: float) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(value)))


def read_label_file(path: str | os.PathLike[str], known: np.ndarray | None = None) -> np.ndarray:
    """The labels `(n,)`, float32, 0-5, of a file whose rows hold a label and the row's index in either order.

    The index counts from 0 or 1; the column that counts is the index, the other one the label.

    Args:
        path: the file.
        known: labels from another file, which decide where both columns could be either.

    Raises:
        InputError: for a row without two numbers, a column that should count and does not, labels out of range, and
            where it cannot be told which column is which.
    """
    rows: list[list[str]] = []
    for number, line in read_lines(path):
        fields = decode(line, path, number).replace(",", " ").split()
        if len(fields) != 2:
            raise InputError(f"{len(fields)} columns, expected 2: a label and the row's index", path=path, line=number)
        if not all(_is_number(field.encode()) for field in fields):
            raise InputError(f"{' '.join(fields)[:40]!r} are not two numbers", path=path, line=number)
        rows.append(fields)
    columns = np.array(rows, dtype=np.float64).T
    counts_from = [_counts_from(column) for column in columns]
    found = []
    for index, label in ((0, 1), (1, 0)):
        if counts_from[index] is not None and ((columns[label] >= 0) & (columns[label] <= 5)).all():
            found.append(columns[label].astype(np.float32))
    if len(found) == 2 and known is not None and len(known) == len(rows):
        found = [labels for labels in found if np.array_equal(labels, known)]
    if len(found) == 2 and np.array_equal(*found):
        found.pop()
    if len(found) == 1:
        return found[0]
    if len(found) == 2:
        raise InputError("ambiguous: either column could be the labels and the other the index", path=path)
    if counts_from != [None, None]:
        label = 1 if counts_from[0] is not None else 0
        for number, row in enumerate(rows, start=1):
            parse_label(row[label], path, number)
    # The column that counts for longest is the one meant as the index: the row where it stops is the one to mend.
    wrong = max(int(np.argmax(_misses(column))) for column in columns)
    raise InputError(f"{' '.join(rows[wrong])!r}: no column counts the rows from 0 or 1 up to here", path=path, line=wrong + 1)


def _misses(column: np.ndarray) -> np.ndarray:
    return column != column[0] + np.arange(len(column))


def _counts_from(column: np.ndarray) -> int | None:
    return int(column[0]) if column[0] in (0, 1) and not _misses(column).any() else None


def write_dat_files(
    folder: str | os.PathLike[str],
    pairs: TextPairs,
    first: Iterable[np.ndarray],
    second: Iterable[np.ndarray],
) -> DatFiles:
    """Write the challenge's four files; reading them gives the same values bit for bit.

    Args:
        folder: where to put `sentences.dat`, `tokens1.dat`, `tokens2.dat`, `labels.dat`.
        pairs: the text and the labels.
        first: token embeddings `(T, D)` of each first sentence.
        second: and of each second sentence.

    Raises:
        InputError: where a sentence holds a tab or a line end, which the format has no way to write.
    """
    folder = Path(folder)
    files = DatFiles(*(folder / f"{name}.dat" for name in ("sentences", "tokens1", "tokens2", "labels")))
    assert files.sentences and files.labels
    labels = [f"{label:.9g}" for label in pairs.labels.tolist()]
    for number, pair in enumerate(zip(pairs.first, pairs.second, strict=True), start=1):
        if any(re.search(r"[\t\r\n]", sentence) for sentence in pair):
            raise InputError(f"pair {number}: a sentence holds a tab or a line end, which .dat files cannot hold")
    with write_atomically(files.sentences) as file:
        for row in zip(pairs.first, pairs.second, labels, strict=True):
            file.write(("\t".join(row) + "\n").encode("utf-8"))
    with write_atomically(files.labels) as file:
        for index, label in enumerate(labels):
            file.write(f"{label}\t{index}\n".encode("ascii"))
    for path, sentences in ((files.first, first), (files.second, second)):
        with write_atomically(path) as file:
            for tokens in tqdm(sentences, total=len(pairs), unit="row", desc=path.name, disable=None):
                file.write(format_token_row(tokens))
    return files


def format_token_row(tokens: np.ndarray) -> bytes:
    """The row of a token file for token embeddings `(T, D)`; nine digits bring back every float32."""
    numbers = " ".join([f"{value:.9g}" for value in tokens.ravel().tolist()])
    return f"{tokens.shape[0]} {tokens.shape[1]} {numbers}\n".encode("ascii")
