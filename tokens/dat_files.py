"""The challenge's four text files, all named `*.dat`, and the token stores made from them.

    file                row i
    1 sentences         sentence1 <TAB> sentence2 <TAB> label
    2 first tokens      n_tokens dim v v v ...   (n_tokens * dim values, token by token)
    3 second tokens     as file 2
    4 labels            the label 0-5 and the row's index, in either order

Files are recognised by their content, because only the name of the first is public.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from loky import cpu_count, get_reusable_executor

from common.errors import InputError
from common.files import write_atomically
from common.progress import Progress
from tokens.lines import decode, read_lines
from tokens.tables import is_on_hub
from tokens.text_pairs import MAX_LABEL, ReadOptions, TextPairs, parse_label, read_text_pairs
from tokens.token_rows import format_token_row, is_number, parse_token_row
from tokens.token_store import TokenStore, cached_store, create_store, identity_of

TOKEN_DIM = 768
LARGE_FILE = 100_000_000  # bytes; a smaller file is read faster than another process starts


@dataclass(frozen=True)
class DatFiles:
    """The challenge's files; one of `sentences` and `labels` may be missing."""

    sentences: Path | None
    first: Path
    second: Path
    labels: Path | None


def list_dat_files(folder: Path) -> list[Path]:
    """Return the `.dat` and `.dat.gz` files of a folder by name; empty if there is no such folder."""
    return sorted(path for path in folder.iterdir() if path.name.endswith((".dat", ".dat.gz"))) if folder.is_dir() else []


def find_dat_files(paths: Sequence[str | os.PathLike[str]]) -> DatFiles:
    """Recognise the challenge's files by their content.

    The two token files look alike: the first by name in a folder, or the first path given, holds the first sentences.

    Args:
        paths: one folder with `*.dat` or `*.dat.gz` files, or the paths of the files.

    Raises:
        InputError: if a file is missing, not recognised, ambiguous or given twice, or a folder is not given alone.
    """
    files = [Path(path) for path in paths]
    for path in files if len(files) > 1 else ():
        if path.is_dir() or is_on_hub(path):
            kind = "folder" if path.is_dir() else "dataset of the hub"
            raise InputError(f"is a {kind}, expected it alone; only the challenge's files are given together", path=path)
        if sum(other.resolve() == path.resolve() for other in files) > 1:
            raise InputError("given twice, expected different files", path=path)
    source = files[0]
    if source.is_dir():
        files = list_dat_files(source)
        if not files:
            raise InputError(
                "no .dat or .dat.gz file in this folder, expected the challenge's; for text, give a .csv or .tsv", path=source
            )
    kinds: dict[str, list[Path]] = {"sentences": [], "tokens": [], "labels": []}
    for path in files:
        kinds[recognise(path)].append(path)
    for kind, most in (("sentences", 1), ("tokens", 2), ("labels", 1)):
        if len(kinds[kind]) > most:
            names = ", ".join(path.name for path in kinds[kind])
            raise InputError(
                f"ambiguous: {len(kinds[kind])} files of {kind} ({names}), expected {most}; give the paths of the right ones",
                path=source,
            )
    if len(kinds["tokens"]) < 2:
        found = ", ".join(path.name for path in kinds["tokens"]) or "none"
        raise InputError(
            f"expected 2 files of token embeddings, one per sentence of a pair, found {found}; give both paths", path=source
        )
    if not kinds["sentences"] and not kinds["labels"]:
        raise InputError("no labels, expected a file of sentences with labels or a file of labels next to the others", path=source)
    return DatFiles(
        sentences=next(iter(kinds["sentences"]), None),
        first=kinds["tokens"][0],
        second=kinds["tokens"][1],
        labels=next(iter(kinds["labels"]), None),
    )


def recognise(path: str | os.PathLike[str]) -> str:
    """Return what a file holds, by its first rows: "sentences", "tokens" or "labels"."""
    rows = read_lines(path)
    number, row = next(rows)
    fields = re.split(rb"[\s,]+", row.strip())
    numeric = [is_number(field) for field in fields[:8]]
    if all(numeric):
        if len(fields) == 2 and float(fields[0]) == 0:  # an index and a label, or a sentence without tokens: the next row tells
            following = next(rows, (0, b""))[1].split()
            if len(following) > 4 or following == fields:  # an index would count
                return "tokens"
        return "tokens" if len(fields) > 4 else "labels"
    if sum(numeric) >= 3 and numeric[:2] == [True, True] and b"\t" not in row:
        return "tokens"  # a damaged row of tokens; reading it says what is wrong
    if row.count(b"\t") in (1, 2, 3):
        following = next(rows, (0, b""))[1].split()
        has_labels = len(following) == 2 and all(map(is_number, following))  # below a header: reading it says so
        return "labels" if has_labels else "sentences"
    raise InputError(
        "not one of the challenge's files, expected rows of two sentences and a label separated by tabs, "
        "of 'n_tokens dim v v ...', or of a label and an index; give other tables one at a time",
        path=path,
        line=number,
    )


def read_dat_files(
    paths: Sequence[str | os.PathLike[str]], *, dim: int | None = TOKEN_DIM, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[TokenStore, TokenStore, np.ndarray, TextPairs | None]:
    """Read the challenge's four files, as `find_dat_files` recognises them.

    Returns:
        The token stores of the first and of the second sentences, labels `(n,)`, and the text if there is a sentence file.

    Raises:
        InputError: if a file is missing, ambiguous or malformed, or files differ in length or disagree on a label.
    """
    files = find_dat_files(paths)
    if files.sentences:
        _check_sentences(files.sentences)
    options = ReadOptions(columns="first=1,second=2,label=3", label_range=(0, MAX_LABEL))
    text = read_text_pairs(files.sentences, options, has_options=False) if files.sentences else None
    labels = text.labels if text else None
    if files.labels:
        stated = read_label_file(files.labels, known=labels)
        if labels is not None:
            _check_rows(files.labels, len(stated), files.sentences, len(labels))
            if not np.array_equal(stated, labels):
                row = int(np.argmax(stated != labels))
                raise InputError(
                    f"label {stated[row]:g}, but {files.sentences} says {labels[row]:g}; fix one of them",
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
            f"dim is {second.dim}, expected {first.dim} as in {files.first}: use one backbone and layers for both",
            path=files.second,
        )
    return first, second, labels, text


def _check_sentences(path: Path) -> None:
    number, row = next(read_lines(path))
    if row.count(b"\t") < 2:
        raise InputError(
            "2 columns, expected 3 separated by tabs: two sentences and a label, also beside a file of labels",
            path=path,
            line=number,
        )


def _check_rows(path: Path, rows: int, other: Path | None, expected: int) -> None:
    if rows != expected:
        raise InputError(f"{rows} rows, expected {expected} as in {other}: row i of each file is the same pair", path=path)


def read_token_file(
    path: str | os.PathLike[str],
    *,
    dim: int | None = TOKEN_DIM,
    cache_dir: str | os.PathLike[str] | None = None,
    position: int = 0,
) -> TokenStore:
    """Return the token store of a file of token embeddings.

    The store is built once, row by row, so files may be larger than memory, and kept next to the file as `NAME.store`.
    Opening it again takes milliseconds, as long as the file does not change.

    Args:
        path: file of rows `n_tokens dim v v v ...`, optionally gzip-compressed.
        dim: the dim every row must state; None takes the first row's.
        cache_dir: folder for the store, instead of the file's own.
        position: line of the progress bar, if files are read concurrently.

    Raises:
        InputError: if the file is missing or a row is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file, expected token embeddings", path=path)
    description = {"source": path.name, "identity": identity_of(path), "dim": dim}

    def build(cache: Path) -> None:
        rows = read_lines(path)
        start = next(rows)
        width = parse_token_row(start[1], dim, path, start[0]).shape[1]
        size = path.stat().st_size if path.suffix != ".gz" else None
        bar = Progress(total=size, unit="B", unit_scale=True, desc=path.name, position=position)
        with bar, create_store(cache, width) as writer:
            for number, row in chain([start], rows):
                writer.append(parse_token_row(row, width, path, number))
                bar.update(len(row) + 1)
            writer.finish({}, description)

    return cached_store(Path(cache_dir or path.parent) / f"{path.name}.store", description, build)


def read_token_files(
    paths: Sequence[Path], *, dim: int | None = TOKEN_DIM, cache_dir: str | os.PathLike[str] | None = None
) -> list[TokenStore]:
    """Return the token stores of several files of token embeddings; large files are read concurrently.

    Raises:
        InputError: as `read_token_file`, for the first bad file.
    """
    if cpu_count() > 1 and sum(path.is_file() and path.stat().st_size >= LARGE_FILE for path in paths) > 1:
        executor = get_reusable_executor(max_workers=min(cpu_count(), len(paths)))
        jobs = [executor.submit(_build_store, path, dim, cache_dir, position) for position, path in enumerate(paths)]
        for job in jobs:
            job.result()
    return [read_token_file(path, dim=dim, cache_dir=cache_dir) for path in paths]


def _build_store(path: Path, dim: int | None, cache_dir: str | os.PathLike[str] | None, position: int) -> None:
    # It returns nothing: opening the store from disk is faster than sending it between processes.
    read_token_file(path, dim=dim, cache_dir=cache_dir, position=position)


def read_label_file(path: str | os.PathLike[str], known: np.ndarray | None = None) -> np.ndarray:
    """Read labels `(n,)`, float32, 0-5, from rows of a label and the row's index, in either order.

    The index counts from 0 or 1; the column that counts is the index.

    Args:
        path: the file.
        known: labels from another file, which decide if either column could be the labels.

    Raises:
        InputError: if a row is not two numbers, a label is out of range, no column is an index, or the file is ambiguous.
    """
    rows: list[list[str]] = []
    for number, line in read_lines(path):
        fields = decode(line, path, number).replace(",", " ").split()
        if len(fields) != 2:
            raise InputError(f"{len(fields)} columns, expected 2: a label and the row's index", path=path, line=number)
        if not all(is_number(field.encode()) for field in fields):
            raise InputError(
                f"{' '.join(fields)[:40]!r} is not two numbers, expected a label and the row's index, without a header",
                path=path,
                line=number,
            )
        rows.append(fields)
    columns = np.array(rows, dtype=np.float64).T
    breaks = [column != column[0] + np.arange(len(column)) for column in columns]  # rows where a column does not count
    is_index = [column[0] in (0, 1) and not broken.any() for column, broken in zip(columns, breaks, strict=True)]
    candidates = [
        columns[label].astype(np.float32)
        for index, label in ((0, 1), (1, 0))
        if is_index[index] and ((columns[label] >= 0) & (columns[label] <= 5)).all()
    ]
    if len(candidates) == 2 and known is not None and len(known) == len(rows):
        candidates = [labels for labels in candidates if np.array_equal(labels, known)]
    if len(candidates) == 2 and not np.array_equal(*candidates):
        raise InputError("ambiguous: either column could be the labels; add the file of sentences with labels", path=path)
    if candidates:
        return candidates[0]
    if any(is_index):
        label = 1 if is_index[0] else 0
        for number, row in enumerate(rows, start=1):
            problem, _ = parse_label(row[label], (0, MAX_LABEL))
            if problem:
                raise InputError(problem, path=path, line=number)
    # The column that counts for longest is meant as the index; the row where it stops is the one to fix.
    wrong = max(int(np.argmax(broken)) for broken in breaks)
    raise InputError(
        f"{' '.join(rows[wrong])!r}: neither column continues the row index, expected a label and an index from 0 or 1",
        path=path,
        line=wrong + 1,
    )


def write_dat_files(
    folder: str | os.PathLike[str], pairs: TextPairs, first: Iterable[np.ndarray], second: Iterable[np.ndarray]
) -> None:
    """Write the challenge's four files; reading them returns the same values bit for bit.

    Args:
        folder: gets `sentences.dat`, `tokens1.dat`, `tokens2.dat`, `labels.dat`.
        pairs: the text and the labels.
        first: token embeddings `(T, D)` of each first sentence.
        second: token embeddings `(T, D)` of each second sentence.

    Raises:
        InputError: if a sentence contains a tab or a line break, which the format cannot represent.
    """
    folder = Path(folder)
    for number, pair in enumerate(zip(pairs.first, pairs.second, strict=True), start=1):
        if any(re.search(r"[\t\r\n]", sentence) for sentence in pair):
            raise InputError(
                f"pair {number}: a sentence has a tab or a line break, which .dat files cannot hold; remove it or omit --dat"
            )
    labels = [f"{label:.9g}" for label in pairs.labels.tolist()]
    with write_atomically(folder / "sentences.dat") as file:
        for row in zip(pairs.first, pairs.second, labels, strict=True):
            file.write(("\t".join(row) + "\n").encode("utf-8"))
    with write_atomically(folder / "labels.dat") as file:
        for index, label in enumerate(labels):
            file.write(f"{label}\t{index}\n".encode("ascii"))
    for name, sentences in (("tokens1.dat", first), ("tokens2.dat", second)):
        with write_atomically(folder / name) as file:
            for tokens in Progress(sentences, total=len(pairs), unit="row", desc=name):
                file.write(format_token_row(tokens))
