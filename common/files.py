"""Files appear whole or not at all: written under a temporary name, then moved into place."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:  # most who write files draw nothing, and importing it takes half a second
    from matplotlib.figure import Figure


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for binary writing; it is replaced only when the block ends without an error.

    The temporary file lies in the same folder, because a move is atomic only within one file system. It is removed
    when the block fails. Missing parent folders are made.

    Raises:
        OSError: where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, ordinary_mode(0o666))  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say for which file
        raise


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with write_atomically(path) as file:
        file.write(text.encode("utf-8"))


def write_csv_atomically(path: str | os.PathLike[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV to `path`, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text_atomically(path, text.getvalue())


def ordinary_mode(mode: int) -> int:
    """The mode that a file (0o666) or a folder (0o777) would have without anything special, by the user's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask


def write_figure_atomically(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a matplotlib figure as PNG, at the size the README shows it."""
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=110)
