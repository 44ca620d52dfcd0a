"""The one exception for bad input, and a check that several settings share."""

from __future__ import annotations

import os


class InputError(Exception):
    """Bad input; its text is one line, `file:line: what is wrong, what was expected`."""

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, line: int | None = None) -> None:
        """Build the text from what is wrong and what was expected, the file, and the line in it, from 1."""
        location = "" if path is None else f"{os.fspath(path)}: " if line is None else f"{os.fspath(path)}:{line}: "
        super().__init__(" ".join(f"{location}{message}".split()))


def refuse_negative(settings: object, *names: str, place: str = "") -> None:
    """Raise InputError for the first of some fields that is below 0 or NaN; `place` comes before its name in the message."""
    for name in names:
        if not getattr(settings, name) >= 0:
            raise InputError(f"{place}{name} is {getattr(settings, name)}, expected 0 or more")
