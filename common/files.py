"""Atomic writing: to a temporary file, then moved into place."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:  # importing it takes half a second, and most callers draw nothing
    from matplotlib.figure import Figure


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for binary writing; it is replaced only if the block ends without an error.

    The temporary file is in the same folder, because a move is atomic only within one file system. Missing folders are created.

    Raises:
        OSError: if the folder is not writable or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, ordinary_mode(0o666))  # mkstemp creates private files
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # errors of a full disk carry no file name
        raise


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with write_atomically(path) as file:
        file.write(text.encode("utf-8"))


def write_csv_atomically(path: str | os.PathLike[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows to `path` as CSV, atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text_atomically(path, text.getvalue())


def ordinary_mode(mode: int) -> int:
    """Return `mode`, 0o666 for a file or 0o777 for a folder, with the user's umask applied."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask


def make_readable(folder: Path) -> None:
    """Give all files in a folder, at any depth, the ordinary modes; safetensors and others make theirs private."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(ordinary_mode(0o666))


def absolute_if_exists(path: str) -> str:
    """A path as an absolute one; what is no path, such as a name on the hub, as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder at any depth."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def write_figure_atomically(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a matplotlib figure to `path` as PNG, atomically, at the README's resolution."""
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=110)
