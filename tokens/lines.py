"""Lines of text files in UTF-8, as the challenge's files are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import InputError
from tokens.tables import NUL, open_bytes, raising_damage


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers from 1 and lines, without line ends, byte-order mark, and blank lines at the end.

    Raises:
        InputError: if the file is missing, empty or damaged, or has a blank line between others.
    """
    path = Path(path)
    number = blank = last = 0
    with open_bytes(path) as file, raising_damage(path, lambda: number + 1):
        for number, line in enumerate(file, start=1):
            line = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n")
            if not line.strip():
                blank = blank or number
                continue
            if blank:
                raise InputError("blank line, expected a row", path=path, line=blank)
            last = number
            yield number, line
    if not last:
        raise InputError("the file is empty, expected a row on each line", path=path)


def decode(line: bytes, path: str | os.PathLike[str], number: int) -> str:
    """Decode a line of UTF-8.

    Raises:
        InputError: if it is not UTF-8, or has a NUL byte.
    """
    if b"\0" in line:
        raise InputError(NUL, path=path, line=number)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8", path=path, line=number
        ) from error
