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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from loky import cpu_count, get_reusable_executor
from tqdm import tqdm

from common.errors import InputError
from common.files import write_atomically
from tokens.text_files import TextPairs, decode, parse_label, read_lines, read_text_pairs
from tokens.token_rows import format_token_row, is_number, parse_token_row
from tokens.token_store import TokenStore, cached_store, create_store, identity_of

TOKEN_DIM = 768
LARGE_FILE = 100_000_000  # bytes; reading less takes no longer than starting another process


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
            raise InputError(
                "no .dat or .dat.gz file in this folder, expected the challenge's files; text goes by the path of its .csv or .tsv",
                path=place,
            )
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
        raise InputError(
            f"expected 2 files of token embeddings, one for each sentence of a pair, found {found}; give the paths of both",
            path=place,
        )
    if not kinds["sentences"] and not kinds["labels"]:
        raise InputError(
            "no labels: expected a file of sentences with labels or a file of labels; put one beside the others", path=place
        )
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
    numeric = [is_number(field) for field in fields[:8]]
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


def has_dat_files(folder: Path) -> bool:
    """Whether a folder holds files of the challenge."""
    return any(path.name.endswith((".dat", ".dat.gz")) for path in folder.iterdir()) if folder.is_dir() else False


def read_dat_files(
    paths: Sequence[str | os.PathLike[str]], *, dim: int | None = TOKEN_DIM, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[TokenStore, TokenStore, np.ndarray, TextPairs | None]:
    """Read the challenge's four files; see `find_dat_files` for how they are told apart.

    Returns:
        The tokens of the first and of the second sentences, labels `(n,)`, and the text if there is a file of sentences.

    Raises:
        InputError: also if the files differ in length or disagree on a label.
    """
    files = find_dat_files(paths)
    text = read_text_pairs(files.sentences) if files.sentences else None
    labels = text.labels if text else None
    if files.labels:
        stated = read_label_file(files.labels, known=labels)
        if labels is not None:
            _check_rows(files.labels, len(stated), files.sentences, len(labels))
            if not np.array_equal(stated, labels):
                row = int(np.argmax(stated != labels))
                raise InputError(
                    f"label {stated[row]:g}, but {files.sentences} says {labels[row]:g} for the same pair; fix one of them",
                    path=files.labels,
                    line=row + 1,
                )
        labels = stated
    assert labels is not None
    first, second = read_token_files([files.first, files.second], dim=dim, cache_dir=cache_dir)
    for path, store in ((files.first, first), (files.second, second)):
        _check_rows(path, len(store), files.labels or files.sentences, len(labels))
    if first.dim != second.dim:
        raise InputError(
            f"dim is {second.dim}, expected {first.dim} as in {files.first}; both must come from the same backbone and layers",
            path=files.second,
        )
    return first, second, labels, text


def _check_rows(path: Path, rows: int, other: Path | None, expected: int) -> None:
    if rows != expected:
        raise InputError(f"{rows} rows, expected {expected} as in {other}: row i of each file is the same pair", path=path)


def read_token_file(
    path: str | os.PathLike[str],
    *,
    dim: int | None = TOKEN_DIM,
    cache_dir: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
    bar_line: int = 0,
) -> TokenStore:
    """The token store of a file of token embeddings.

    It is made once, row by row, so that a file larger than memory can be read, and kept beside the file as
    `NAME.store`. While the file stays the same, opening it again takes milliseconds.

    Args:
        path: file of rows `n_tokens dim v v v ...`, may be gzip-compressed.
        dim: the width that every row must have; None takes that of the first row.
        cache_dir: where to keep the store instead of beside the file.
        show_progress: show a progress bar while reading.
        bar_line: on which line below the cursor, where several files are read at a time.

    Raises:
        InputError: for a row with too few or too many numbers, another dim, NaN, a negative count.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file, expected token embeddings; check the path", path=path)
    description = {"source": path.name, "identity": identity_of(path), "dim": dim}

    def build(cache: Path) -> None:
        rows = read_lines(path)
        number, row = next(rows)
        tokens = parse_token_row(row, dim, path, number)
        bar = tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=path.name,
            position=bar_line,
            disable=None if show_progress else True,
        )
        is_plain = path.suffix != ".gz"
        with bar, create_store(cache, tokens.shape[1]) as writer:
            writer.append(tokens)
            bar.update(len(row) + 1 if is_plain else 0)
            for number, row in rows:
                writer.append(parse_token_row(row, tokens.shape[1], path, number))
                bar.update(len(row) + 1 if is_plain else 0)
            writer.finish({}, description)

    return cached_store(Path(cache_dir or path.parent) / f"{path.name}.store", description, build)


def read_token_files(
    paths: Sequence[Path], *, dim: int | None = TOKEN_DIM, cache_dir: str | os.PathLike[str] | None = None
) -> list[TokenStore]:
    """The token stores of several files of token embeddings; large files are read at the same time, each on a core.

    Raises:
        InputError: as `read_token_file` does, for the first file that is wrong.
    """
    if cpu_count() > 1 and sum(path.is_file() and path.stat().st_size >= LARGE_FILE for path in paths) > 1:
        read = partial(read_token_file, dim=dim, cache_dir=cache_dir)
        executor = get_reusable_executor(max_workers=min(cpu_count(), len(paths)))
        for reading in [executor.submit(_only_read, read, path, line) for line, path in enumerate(paths)]:
            reading.result()
    return [read_token_file(path, dim=dim, cache_dir=cache_dir) for path in paths]


def _only_read(read: Callable[..., TokenStore], path: Path, line: int) -> None:
    read(path, bar_line=line)  # the store is on disk; to send it back would take longer than to open it


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
        if not all(is_number(field.encode()) for field in fields):
            raise InputError(
                f"{' '.join(fields)[:40]!r} are not two numbers, expected a label and the row's index", path=path, line=number
            )
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
        raise InputError(
            "ambiguous: either column could be the labels and the other the index; the file of sentences would tell", path=path
        )
    if counts_from != [None, None]:
        label = 1 if counts_from[0] is not None else 0
        for number, row in enumerate(rows, start=1):
            parse_label(row[label], path, number)
    # The column that counts for longest is the one meant as the index: the row where it stops is the one to mend.
    wrong = max(int(np.argmax(_misses(column))) for column in columns)
    raise InputError(
        f"{' '.join(rows[wrong])!r}: no column counts the rows from 0 or 1 up to here, expected a label and the row's index",
        path=path,
        line=wrong + 1,
    )


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
            raise InputError(
                f"pair {number}: a sentence holds a tab or a line end, which .dat files cannot; change it, or leave out --dat"
            )
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
