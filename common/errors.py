"""The one exception for bad input."""

from __future__ import annotations

import os


class InputError(Exception):
    """Something the user gave is wrong.

    Its text is the whole message: one line, `file:line: what is wrong, what was expected`.
    """

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, line: int | None = None) -> None:
        """Build the message.

        Args:
            message: what is wrong and what was expected.
            path: the file it is wrong in.
            line: the line in that file, counted from 1.
        """
        place = "" if path is None else f"{os.fspath(path)}: " if line is None else f"{os.fspath(path)}:{line}: "
        super().__init__(" ".join(f"{place}{message}".split()))
