"""Progress of long work: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # between lines of a log, and before the first
LINE = "{l_bar} {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left{postfix}"


class Progress(tqdm):
    """A tqdm bar on standard error; where that is no terminal, a line of text every half minute.

    Short work leaves nothing in a log.
    """

    def __init__(self, iterable: Iterable | None = None, **settings: Any) -> None:
        """Take the arguments of tqdm, `disable` to show nothing anywhere."""
        self._plain = not sys.stderr.isatty()
        self._next_line = time.monotonic() + SECONDS
        super().__init__(iterable, **({"bar_format": LINE} if self._plain else {}), **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or write a line if it is time for one."""
        if not self._plain:
            return super().display(msg, pos)
        if time.monotonic() >= self._next_line:
            print(str(self), file=sys.stderr, flush=True)
            self._next_line = time.monotonic() + SECONDS
        return True

    def clear(self, nolock: bool = False) -> None:
        """Clear the bar; lines of a log stay."""
        if not self._plain:
            super().clear(nolock)

    def close(self) -> None:
        """End with the bar as it is; a log gets no last line."""
        if self._plain:
            self.disable = True
        super().close()
