"""The one exception for bad input."""

from __future__ import annotations

import os


class InputError(Exception):
    """Bad input; its text is one line, `file:line: what is wrong, what was expected`."""

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, line: int | None = None) -> None:
        """Build the text from what is wrong and what was expected, the file, and the line in it, from 1."""
        location = "" if path is None else f"{os.fspath(path)}: " if line is None else f"{os.fspath(path)}:{line}: "
        super().__init__(" ".join(f"{location}{message}".split()))
